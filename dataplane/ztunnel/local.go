// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"fmt"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// local finds the catalog's entry for the one pod that a proxy serves, by what ZDS said of it. Never by address: an
// address may already belong to another pod than the catalog thinks.
type local struct {
	Info
	store *catalog.Store
	wait  time.Duration
}

func (l *local) in(s *catalog.Snapshot) *mesh.Workload {
	return s.WorkloadByName(l.Namespace, l.Name, l.ServiceAccount)
}

// await returns a snapshot that knows the pod; a pod that has just started may be ahead of the control plane.
func (l *local) await(ctx context.Context) (*catalog.Snapshot, *mesh.Workload, error) {
	s := l.store.Load()
	if w := l.in(s); w != nil {
		return s, w, nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.wait)
	defer cancel()
	var w *mesh.Workload
	err := l.store.WaitFor(ctx, func(now *catalog.Snapshot) bool {
		s, w = now, l.in(now)
		return w != nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: no workload %s/%s with service account %s in the configuration after %s",
			errUnknownSelf, l.Namespace, l.Name, l.ServiceAccount, l.wait)
	}
	return s, w, nil
}

// identity is who the pod is: the account from ZDS, the trust domain from the catalog.
func (l *local) identity(w *mesh.Workload) mesh.Identity {
	id := w.Identity()
	id.Namespace = l.Namespace
	if l.ServiceAccount != "" {
		id.ServiceAccount = l.ServiceAccount
	}
	return id
}
