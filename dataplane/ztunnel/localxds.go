// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/xds"
)

// look is how often a local document's file is looked at.
const look = 250 * time.Millisecond

// document is local configuration. It belongs to one goroutine.
type document struct {
	Local
	store *catalog.Store
	work  *workCounter
	log   *slog.Logger

	last      []byte
	addresses map[string]bool // what the last good version holds: uids and service keys
	policies  map[string]bool
}

// load reads the document and applies the difference to what it held before. A bad one changes nothing.
func (d *document) load() error {
	data, name := d.Inline, "LOCAL_XDS"
	if d.Path != "" {
		var err error
		if data, err = os.ReadFile(d.Path); err != nil {
			return fmt.Errorf("read local configuration: %w", err)
		}
		name = d.Path
	}
	if d.last != nil && bytes.Equal(d.last, data) {
		return nil
	}
	local, err := xds.DecodeLocal(data)
	if err != nil {
		return fmt.Errorf("read local configuration %s: %w", name, err)
	}
	d.last = data
	d.apply(local)
	return nil
}

func (d *document) apply(l xds.Local) {
	delta := catalog.Delta{Workloads: l.Workloads, Services: l.Services, Policies: l.Policies}
	addresses, policies := make(map[string]bool), make(map[string]bool)
	for _, w := range l.Workloads {
		addresses[w.UID] = true
	}
	for _, s := range l.Services {
		addresses[s.Key()] = true
	}
	for _, p := range l.Policies {
		policies[p.Key()] = true
	}
	for name := range d.addresses {
		if !addresses[name] {
			delta.RemovedAddresses = append(delta.RemovedAddresses, name)
		}
	}
	for name := range d.policies {
		if !policies[name] {
			delta.RemovedPolicies = append(delta.RemovedPolicies, name)
		}
	}
	d.addresses, d.policies = addresses, policies
	d.store.Apply(delta)
	d.work.add()
	d.log.Info("local configuration applied", "workloads", len(l.Workloads), "services", len(l.Services), "policies", len(l.Policies))
}

// watch reloads the file whenever it changes, until ctx ends. A version that does not parse is reported, and the last good
// one stays. It looks at the file, not for events: that also sees a mounted ConfigMap, whose file is behind two links.
func (d *document) watch(ctx context.Context) error {
	if d.Path == "" {
		return nil
	}
	t := time.NewTicker(look)
	defer t.Stop()
	var seen os.FileInfo
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now, err := os.Stat(d.Path)
		if err != nil || seen != nil && os.SameFile(seen, now) && seen.ModTime().Equal(now.ModTime()) && seen.Size() == now.Size() {
			continue
		}
		seen = now
		if err := d.load(); err != nil {
			d.log.Error("local configuration not reloaded, the last good version stays", "error", err)
		}
	}
}
