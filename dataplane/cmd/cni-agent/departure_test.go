// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/source/kube/nodeapi"
)

func TestWhatIsInstalledGoesWithTheDaemonSetAlone(t *testing.T) {
	type answer struct {
		wanted bool
		err    error
	}
	there, gone := answer{true, nil}, answer{false, nil}
	refused, away := answer{false, fmt.Errorf("get: %w", nodeapi.ErrRefused)}, answer{false, errors.New("connection refused")}
	for name, tt := range map[string]struct {
		start, end answer
		final      bool
	}{
		"upgrade":                     {there, there, false},
		"uninstalled":                 {there, gone, true},
		"uninstalled with its rights": {there, refused, true},
		"no API server":               {there, away, false},
		"under another name":          {gone, gone, false},
		"never had the right":         {refused, refused, false},
	} {
		t.Run(name, func(t *testing.T) {
			now := tt.start
			d := &departure{log: slog.New(slog.DiscardHandler), wanted: func(ctx context.Context) (bool, error) {
				if ctx.Err() != nil {
					return false, ctx.Err()
				}
				return now.wanted, now.err
			}}
			ctx, cancel := context.WithCancel(t.Context())
			if err := d.Run(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
			now = tt.end
			if got := d.final(ctx); got != tt.final {
				t.Errorf("final: %v", got)
			}
		})
	}
}

func TestAServerThatWasNeverThere(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := &departure{log: slog.New(slog.DiscardHandler), wanted: func(context.Context) (bool, error) {
		cancel()
		return false, errors.New("connection refused")
	}}
	if err := d.Run(ctx); err != nil || d.final(ctx) {
		t.Error(err)
	}
}
