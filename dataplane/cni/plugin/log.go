// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
)

// journal is what one run of the plugin logs: text for the runtime, which keeps it or not, and lines for the node's agent, whose
// log people read.
type journal struct {
	*slog.Logger
	socket string       // the agent's; "": it has none
	lines  bytes.Buffer // of JSON
}

func (c *Conf) journal(stderr io.Writer) *journal {
	j := &journal{socket: c.LogSocket}
	text := slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: c.level()})
	if j.socket == "" {
		j.Logger = slog.New(text)
		return j
	}
	j.Logger = slog.New(slog.NewMultiHandler(text, slog.NewJSONHandler(&j.lines, &slog.HandlerOptions{Level: c.level(), ReplaceAttr: lowerLevel})))
	return j
}

// lowerLevel writes levels as the agent, and upstream's, read them.
func lowerLevel(groups []string, a slog.Attr) slog.Attr {
	if level, ok := a.Value.Any().(slog.Level); ok && len(groups) == 0 && a.Key == slog.LevelKey {
		return slog.String(a.Key, strings.ToLower(level.String()))
	}
	return a
}

// send gives the agent the lines. A pod starts or does not whatever becomes of them.
func (j *journal) send(ctx context.Context, t Timing) {
	lines := slices.DeleteFunc(strings.Split(j.lines.String(), "\n"), func(l string) bool { return l == "" })
	if len(lines) == 0 {
		return
	}
	body, err := json.Marshal(lines)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.Log) // of what was cut short too
		defer cancel()
		err = post(ctx, j.socket, ambient.LogPath, body)
	}
	if err != nil {
		j.Debug("the agent does not have what was logged", "error", err)
	}
}
