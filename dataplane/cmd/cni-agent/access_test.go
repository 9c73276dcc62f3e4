// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

func TestPluginAccess(t *testing.T) {
	own, answer, asked := "agent-1", "", 0
	a := kube.Access{TokenFile: "/token", CAFile: "/ca"}
	p := &pluginAccess{log: slog.New(slog.DiscardHandler), access: func() (kube.Access, error) {
		a.Token = own
		return a, nil
	}, request: func(context.Context, time.Duration) (string, error) {
		if asked++; answer == "" {
			return "", errors.New("away")
		}
		return answer, nil
	}}
	for i, step := range []struct {
		own, answer, want string
		asked             int
		age               time.Duration
	}{
		{"agent-1", "", "agent-1", 1, 0}, // refused: better than nothing
		{"agent-1", "", "agent-1", 2, 0}, // and asked for again
		{"agent-1", "plugin-1", "plugin-1", 3, 0},
		{"agent-1", "plugin-2", "plugin-1", 3, 0}, // not for each look
		{"agent-2", "plugin-2", "plugin-2", 4, 0}, // kubelet has renewed the agent's
		{"agent-3", "", "plugin-2", 5, 0},         // which is still good
		{"agent-3", "", "agent-3", 6, pluginTokenLifetime},
	} {
		own, answer = step.own, step.answer
		p.when = p.when.Add(-step.age)
		got, err := p.read()
		if err != nil || got.Token != step.want || asked != step.asked || len(got.Files) != 2 {
			t.Errorf("step %d: %+v after %d requests: %v; want %+v", i, got, asked, err, step)
		}
	}
	a.TokenFile = "" // a kubeconfig's, which nobody renews
	if got, err := p.read(); err != nil || got.Token != own || asked != 6 {
		t.Errorf("without a token's file: %+v after %d requests: %v", got, asked, err)
	}
}
