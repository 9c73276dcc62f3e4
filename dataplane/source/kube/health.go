// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Health tells how well an API server can be read.
type Health struct {
	// Broken names the kinds of which changes do not arrive now; empty is good.
	Broken []string
	// Since is when the first of them broke; zero if none is broken.
	Since time.Time
	// Outages counts how often reading broke, however many kinds at once.
	Outages int64
}

// health gathers what the kinds meet, so that one outage is logged once and not once for each kind and attempt.
type health struct {
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	broken  map[string]bool
	since   time.Time
	outages int64
}

func newHealth(log *slog.Logger) *health { return &health{log: log, broken: map[string]bool{}} }

func (h *health) now() Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Health{Broken: slices.Sorted(maps.Keys(h.broken)), Since: h.since, Outages: h.outages}
}

// down notes that a kind cannot be read.
func (h *health) down(kind string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken[kind] {
		return
	}
	h.broken[kind] = true
	if len(h.broken) == 1 {
		h.since = time.Now()
		h.outages++
		h.log.Warn("API server cannot be read; what was read last stays in force", "kind", kind, "err", err)
		return
	}
	h.log.Debug("API server cannot be read", "kind", kind, "err", err)
}

// up notes that a kind can be read.
func (h *health) up(kind string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.broken[kind] {
		return
	}
	delete(h.broken, kind)
	if len(h.broken) == 0 {
		h.log.Info("API server is read again", "after", time.Since(h.since).Round(time.Millisecond))
		h.since = time.Time{}
	}
}

// String is for a page or a log: "" if nothing is broken.
func (h Health) String() string { return strings.Join(h.Broken, ", ") }
