// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
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

	loaded bool
	last   [sha256.Size]byte // of the last version of which something was applied
	held   []object          // what of it is in the store, sorted
}

// object is one of the document's: the section it stands in, and its uid or key.
type object struct {
	section section
	key     string
}

type section uint8

const (
	workloads section = iota
	services
	policyObjects
)

// String is what the document calls the section.
func (s section) String() string { return [...]string{"workloads", "services", "policies"}[s] }

func (o object) compare(p object) int {
	return cmp.Or(cmp.Compare(o.section, p.section), strings.Compare(o.key, p.key))
}

// load reads the document and applies the difference to what it held before, object by object: a bad one keeps its last good
// version. The error joins every problem; applied says whether there is anything else. If not, nothing is changed.
func (d *document) load() (applied bool, err error) {
	var data io.ReadSeeker = bytes.NewReader(d.Inline)
	name := "LOCAL_XDS"
	if d.Path != "" {
		f, err := os.Open(d.Path)
		if err != nil {
			return false, fmt.Errorf("read local configuration: %w", err)
		}
		defer f.Close()
		data, name = f, d.Path
	}
	sum, err := hashOf(data)
	if err != nil {
		return false, fmt.Errorf("read local configuration %s: %w", name, err)
	}
	if d.loaded && d.last == sum {
		return true, nil
	}
	local, err := xds.ReadLocal(data)
	if err != nil {
		err = fmt.Errorf("read local configuration %s: %w", name, err)
	}
	if applied = err == nil || len(local.Workloads)+len(local.Services)+len(local.Policies) > 0; applied {
		d.loaded, d.last = true, sum
		d.apply(local)
	}
	return applied, err
}

// hashOf reads a document to its end and goes back to its start. It is not kept: it may be larger than all that it says.
func hashOf(data io.ReadSeeker) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if _, err = io.Copy(h, data); err == nil {
		_, err = data.Seek(0, io.SeekStart)
	}
	return [sha256.Size]byte(h.Sum(nil)), err
}

func (d *document) apply(l xds.Local) {
	delta := catalog.Delta{Workloads: l.Workloads, Services: l.Services, Policies: l.Policies}
	now := make([]object, 0, len(l.Workloads)+len(l.Services)+len(l.Policies))
	for _, w := range l.Workloads {
		now = append(now, object{workloads, w.UID})
	}
	for _, s := range l.Services {
		now = append(now, object{services, s.Key()})
	}
	for _, p := range l.Policies {
		now = append(now, object{policyObjects, p.Key()})
	}
	slices.SortFunc(now, object.compare)
	var kept []object
	for _, o := range d.held {
		_, still := slices.BinarySearchFunc(now, o, object.compare)
		switch {
		case still:
		case slices.ContainsFunc(l.Bad, o.mayBe):
			kept = append(kept, o)
		case o.section == policyObjects:
			delta.RemovedPolicies = append(delta.RemovedPolicies, o.key)
		default:
			delta.RemovedAddresses = append(delta.RemovedAddresses, o.key)
		}
	}
	d.held = slices.Concat(now, kept)
	slices.SortFunc(d.held, object.compare)
	d.store.Apply(delta)
	d.work.load(len(now))
	d.log.Info("local configuration applied", "workloads", len(l.Workloads), "services", len(l.Services), "policies", len(l.Policies),
		"bad", len(l.Bad), "kept", len(kept))
}

// mayBe reports whether b may be a bad version of o.
func (o object) mayBe(b xds.BadLocal) bool {
	return (b.Section == "" || b.Section == o.section.String()) && (b.Key == "" || b.Key == o.key)
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
