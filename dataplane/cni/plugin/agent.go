// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
)

const maxAnswer = 64 << 10

// ask has the agent enrol a pod and returns what it says when it refuses.
func ask(ctx context.Context, socket string, req ambient.AddRequest) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	return post(ctx, socket, ambient.AddPath, body)
}

// post sends the agent a document on one of its sockets.
func post(ctx context.Context, socket, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the agent at %s (does cni-agent run on this node?): %w", socket, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent refuses (%s): %s", resp.Status, strings.TrimSpace(string(answer)))
	}
	return nil
}
