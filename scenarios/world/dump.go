// SPDX-License-Identifier: Apache-2.0

package world

import "context"

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
