// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// hostSet is the services of one host name, sorted by key.
type hostSet struct {
	host     string // in lower case
	services []*mesh.Service
}

// ServicesByHost are the services of that host name in every namespace, sorted by key. host is in lower case.
func (s *Snapshot) ServicesByHost(host string) []*mesh.Service {
	if set := s.hostSet(host); set != nil {
		return set.services
	}
	return nil
}

func (s *Snapshot) hostSet(host string) *hostSet {
	set, _ := s.hosts.get(hashString(host), func(v *hostSet) bool { return v.host == host })
	return set
}

func (e *edit) addHost(s *mesh.Service) {
	next := &hostSet{host: strings.ToLower(s.Hostname)}
	if old := e.snap.hostSet(next.host); old != nil {
		next.host = old.host
		next.services = slices.Clone(old.services)
	}
	i, _ := slices.BinarySearchFunc(next.services, s, compareServices)
	next.services = slices.Insert(next.services, i, s)
	e.snap.hosts.put(e.epoch, hashString(next.host), next, func(v *hostSet) bool { return v.host == next.host })
}

func (e *edit) dropHost(s *mesh.Service) {
	host := strings.ToLower(s.Hostname)
	old := e.snap.hostSet(host)
	if old == nil {
		return
	}
	next := &hostSet{host: old.host}
	for _, v := range old.services {
		if v != s {
			next.services = append(next.services, v)
		}
	}
	same := func(v *hostSet) bool { return v == old }
	if len(next.services) == 0 {
		e.snap.hosts.remove(e.epoch, hashString(host), same)
		return
	}
	e.snap.hosts.put(e.epoch, hashString(host), next, same)
}
