// SPDX-License-Identifier: Apache-2.0

package source

import (
	"log/slog"
	"slices"
)

// Report logs which problems are new and which are gone.
func Report(log *slog.Logger, before, now []Problem) {
	known := map[string]bool{}
	for _, p := range before {
		known[p.Error()] = true
	}
	for _, p := range now {
		if msg := p.Error(); known[msg] {
			delete(known, msg)
			continue
		}
		log.Warn("object refused, its last good version stays", "file", p.File, "object", p.Key.String(), "field", p.Field, "err", p.Err)
	}
	for msg := range known {
		log.Info("problem with an object is gone", "problem", msg)
	}
}

// SameProblems reports whether two lists say the same.
func SameProblems(a, b []Problem) bool {
	return slices.EqualFunc(a, b, func(a, b Problem) bool { return a.Error() == b.Error() })
}
