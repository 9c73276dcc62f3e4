// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"fmt"

	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/xds"
)

// state puts what the control plane sends into the catalog. It belongs to the xds client's goroutine.
type state struct {
	store *catalog.Store
	work  *workCounter
}

// Update applies every resource that is sound and rejects the others by name: they keep their last good version.
func (s *state) Update(typeURL string, up []xds.Resource, removed []string) (bad []xds.Rejection) {
	frugally(len(up), func() { bad = s.update(typeURL, up, removed) })
	return bad
}

func (s *state) update(typeURL string, up []xds.Resource, removed []string) []xds.Rejection {
	var d catalog.Delta
	var bad []xds.Rejection
	switch typeURL {
	case xds.TypeAddress:
		d.RemovedAddresses = removed
		for _, r := range up {
			w, svc, err := xds.DecodeAddress(r.Value)
			if err == nil {
				err = named(r.Name, w, svc)
			}
			switch {
			case err != nil:
				bad = append(bad, xds.Rejection{Name: r.Name, Err: err})
			case w != nil:
				d.Workloads = append(d.Workloads, w)
			default:
				d.Services = append(d.Services, svc)
			}
		}
	case xds.TypeAuthorization:
		d.RemovedPolicies = removed
		for _, r := range up {
			p, err := xds.DecodeAuthorization(r.Value)
			if err == nil && p.Key() != r.Name {
				err = fmt.Errorf("is the policy %q", p.Key())
			}
			if err != nil {
				bad = append(bad, xds.Rejection{Name: r.Name, Err: err})
				continue
			}
			d.Policies = append(d.Policies, p)
		}
	default:
		for _, r := range up {
			bad = append(bad, xds.Rejection{Name: r.Name, Err: fmt.Errorf("type %s was not asked for", typeURL)})
		}
	}
	s.store.Apply(d)
	s.work.load(len(up))
	return bad
}

// named checks that a resource is what its name says: removals come by name, and must remove what came. The client
// remembers the name for as long as the workload is held, so they share one string.
func named(name string, w *mesh.Workload, svc *mesh.Service) error {
	switch {
	case w != nil && w.UID != name:
		return fmt.Errorf("is the workload %q", w.UID)
	case w != nil:
		w.UID = name
	case svc != nil && svc.Key() != name:
		return fmt.Errorf("is the service %q", svc.Key())
	}
	return nil
}
