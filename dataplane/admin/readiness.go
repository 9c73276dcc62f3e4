// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Readiness is the set of named conditions that a daemon still waits for; it is ready when there are none.
// Safe for concurrent use.
type Readiness struct {
	mu      sync.Mutex
	pending []string // sorted
}

// NewReadiness waits for the names given.
func NewReadiness(names ...string) *Readiness {
	r := &Readiness{}
	for _, n := range names {
		r.Pend(n)
	}
	return r
}

// Pend makes name pending; a daemon may turn unready again.
func (r *Readiness) Pend(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, found := slices.BinarySearch(r.pending, name); !found {
		r.pending = slices.Insert(r.pending, i, name)
	}
}

// Done says that name is no longer pending.
func (r *Readiness) Done(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, found := slices.BinarySearch(r.pending, name); found {
		r.pending = slices.Delete(r.pending, i, i+1)
	}
}

// Pending is what is waited for, sorted; empty when ready.
func (r *Readiness) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pending)
}

// ServeHTTP answers 200 "ready", or 500 with the names that are pending.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if p := r.Pending(); len(p) > 0 {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(p, ", "))
		return
	}
	fmt.Fprint(w, "ready\n")
}
