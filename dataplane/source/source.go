// SPDX-License-Identifier: Apache-2.0

// Package source is where intent is read: Kubernetes and Istio objects, typed, checked and merged into one immutable
// snapshot. It knows which kinds there are and what a sound object looks like; where objects come from is its back
// ends' work (source/file), what they mean is control's and cni's.
// Values are immutable once shared: whoever takes an object out of a snapshot must not write to it.
// Sources: Kubernetes API reference v1, discovery/v1, networking/v1; Istio networking/v1, security/v1.
package source

import "context"

// Source delivers objects. All of its methods but Run may be called from any goroutine, at any time.
type Source interface {
	// Run reads and watches until ctx ends, then returns nil; an error means that it can watch no longer.
	Run(ctx context.Context) error
	// Ready is closed once everything that was there at the start has been read.
	Ready() <-chan struct{}
	// Load gives the newest snapshot; never nil, empty before the first one.
	Load() *Objects
	// Changed is closed when a snapshot newer than the one that Load gives now appears. Fetch it before Load. A problem that
	// comes or goes makes a new snapshot, too.
	Changed() <-chan struct{}
	// Problems lists what is wrong with the objects now, in a stable order.
	Problems() []Problem
}

// Problem is one thing wrong with one object. It costs nobody but that object, which keeps its last good version.
type Problem struct {
	File  string // "" if the object does not come from a file
	Key   Key    // zero if not even that could be read
	Field string // path within the object, such as spec.ports[0].port; "" if the whole object is meant
	Err   error
}

func (p Problem) Error() string {
	s := p.Err.Error()
	for _, part := range []string{p.Field, p.Key.String(), p.File} {
		if part != "" {
			s = part + ": " + s
		}
	}
	return s
}

func (p Problem) Unwrap() error { return p.Err }
