// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
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

	last []byte          // the last version of which something was applied
	held map[object]bool // what of it is in the store
}

// object is one of the document's: the section it stands in, and its uid or key.
type object struct{ section, key string }

// load reads the document and applies the difference to what it held before, object by object: a bad one keeps its last good
// version. The error joins every problem; applied says whether there is anything else. If not, nothing is changed.
func (d *document) load() (applied bool, err error) {
	data, name := d.Inline, "LOCAL_XDS"
	if d.Path != "" {
		if data, err = os.ReadFile(d.Path); err != nil {
			return false, fmt.Errorf("read local configuration: %w", err)
		}
		name = d.Path
	}
	if d.last != nil && bytes.Equal(d.last, data) {
		return true, nil
	}
	local, err := xds.DecodeLocal(data)
	if err != nil {
		err = fmt.Errorf("read local configuration %s: %w", name, err)
		if len(local.Workloads)+len(local.Services)+len(local.Policies) == 0 {
			return false, err
		}
	}
	d.last = data
	d.apply(local)
	return true, err
}

func (d *document) apply(l xds.Local) {
	delta := catalog.Delta{Workloads: l.Workloads, Services: l.Services, Policies: l.Policies}
	now := make(map[object]bool)
	for _, w := range l.Workloads {
		now[object{"workloads", w.UID}] = true
	}
	for _, s := range l.Services {
		now[object{"services", s.Key()}] = true
	}
	for _, p := range l.Policies {
		now[object{"policies", p.Key()}] = true
	}
	kept := 0
	for o := range d.held {
		switch {
		case now[o]:
		case slices.ContainsFunc(l.Bad, o.mayBe):
			now[o] = true
			kept++
		case o.section == "policies":
			delta.RemovedPolicies = append(delta.RemovedPolicies, o.key)
		default:
			delta.RemovedAddresses = append(delta.RemovedAddresses, o.key)
		}
	}
	d.held = now
	d.store.Apply(delta)
	d.work.add()
	d.log.Info("local configuration applied", "workloads", len(l.Workloads), "services", len(l.Services), "policies", len(l.Policies),
		"bad", len(l.Bad), "kept", kept)
}

// mayBe reports whether b may be a bad version of o.
func (o object) mayBe(b xds.BadLocal) bool {
	return (b.Section == "" || b.Section == o.section) && (b.Key == "" || b.Key == o.key)
}

// report logs every problem of a document that was loaded, or not.
func (d *document) report(applied bool, err error) {
	if err == nil {
		return
	}
	message := "local configuration is bad and changes nothing; the last good version stays"
	if applied {
		message = "part of the local configuration is bad and IGNORED; what was good there before stays, everything else is in force"
	}
	var all interface{ Unwrap() []error }
	if !errors.As(err, &all) {
		d.log.Error(message, "error", err)
		return
	}
	d.log.Error(message, "problems", len(all.Unwrap()))
	for _, problem := range all.Unwrap() {
		d.log.Error("local configuration is bad", "error", problem)
	}
}

// watch reloads the file whenever it changes, until ctx ends, and reports what is wrong with it. It looks at the file, not for events: that also sees a mounted ConfigMap, whose file is behind two links.
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
		d.report(d.load())
	}
}
