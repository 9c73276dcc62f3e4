// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// ConfigDump is what a node's ztunnel says of its configuration and connections.
func (w *World) ConfigDump(ctx context.Context, node string) (admin.Dump, error) {
	var d admin.Dump
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://localhost:%d/config_dump", mesh.PortAdmin), nil)
	if err != nil {
		return d, err
	}
	res, err := (&http.Client{Transport: w.Daemon(node, lab.DaemonZtunnel).Admin()}).Do(req)
	if err != nil {
		return d, fmt.Errorf("config dump of %s: %w", node, err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&d); err != nil {
		return d, fmt.Errorf("config dump of %s: %w", node, err)
	}
	return d, nil
}

// OpenTunnels counts the connections of pods and the streams of pooled HBONE connections that a node's ztunnel lists.
func (w *World) OpenTunnels(ctx context.Context, node string) (int, error) {
	d, err := w.ConfigDump(ctx, node)
	n := 0
	for _, s := range d.WorkloadState {
		n += len(s.Connections.Inbound) + len(s.Connections.Outbound)
	}
	for _, pool := range d.Pools {
		for _, c := range pool {
			n += c.Streams
		}
	}
	return n, err
}
