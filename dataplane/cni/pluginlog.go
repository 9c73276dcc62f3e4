// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
)

// ServePluginLog writes what plugins log to the agent's own log, until ctx ends. It closes l, of ListenPlugin. The plugin ends with
// the pod's start, and what it says itself the runtime tells at most when that fails.
func ServePluginLog(ctx context.Context, l net.Listener, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+ambient.LogPath, func(w http.ResponseWriter, r *http.Request) {
		var lines []string
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&lines); err != nil {
			http.Error(w, fmt.Sprintf("read lines: %v", err), http.StatusBadRequest)
			return
		}
		for _, line := range lines {
			relay(ctx, log, line)
		}
	})
	return serveUnix(ctx, l, mux)
}

// relay logs one line of a plugin: an object with level and msg; what else is in it comes along.
func relay(ctx context.Context, log *slog.Logger, line string) {
	var fields map[string]any
	var level slog.Level
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		log.Debug("a plugin logged what is no object", "error", err)
		return
	}
	text, _ := fields["level"].(string)
	if err := level.UnmarshalText([]byte(text)); err != nil {
		level = slog.LevelWarn
	}
	msg, _ := fields["msg"].(string)
	attrs := []any{"from", "plugin"}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains([]string{"level", "msg", "time", "from"}, name) {
			attrs = append(attrs, name, fields[name])
		}
	}
	log.Log(ctx, level, msg, attrs...)
}
