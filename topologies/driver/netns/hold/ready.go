// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies"
)

// readyLine is what the workload binary prints once it listens.
const readyLine = "ready"

const pollEvery = 10 * time.Millisecond

// awaitReady waits until the pod's process says that it is ready, in the way of its role.
func (s *site) awaitReady(ctx context.Context, p *pod, t *task) error {
	switch p.role {
	case roleZtunnel:
		return s.awaitURL(ctx, p.ns, ztunnelReady, t)
	case roleControl:
		return s.awaitURL(ctx, p.ns, controlReady, t)
	}
	if len(t.start.Argv) < 2 || t.start.Argv[0] != topologies.WorkloadBinary || t.start.Argv[1] != "serve" {
		return nil // of a program that we do not know, running is all that can be said
	}
	return await(ctx, t, func() (string, bool) { return "has not printed " + readyLine, t.printed(readyLine) })
}

// await polls until ready reports true; it gives up when the process ends. why completes the message if ctx ends first.
func await(ctx context.Context, t *task, ready func() (why string, ok bool)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		why, ok := ready()
		if ok {
			return nil
		}
		if end := t.ended(); end != "" {
			return errors.New(end)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", ctx.Err(), why)
		case <-tick.C:
		}
	}
}

// awaitURL polls a readiness URL in a namespace.
func (s *site) awaitURL(ctx context.Context, ns *netns.NS, url string, t *task) error {
	client := clientIn(ns)
	defer client.CloseIdleConnections()
	return await(ctx, t, func() (string, bool) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err.Error(), false
		}
		resp, err := client.Do(req)
		if err != nil {
			return err.Error(), false
		}
		defer resp.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(said)), resp.StatusCode == http.StatusOK
	})
}

// clientIn makes requests from within a namespace, to its loopback whatever the URL's host.
func clientIn(ns *netns.NS) *http.Client {
	return &http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return nil, err
			}
			return dialLoopback(ctx, ns, uint16(n))
		}},
	}
}

// dialLoopback connects to a port of a namespace's loopback, whichever family listens.
func dialLoopback(ctx context.Context, ns *netns.NS, port uint16) (*net.TCPConn, error) {
	c, err := ns.DialTCP(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), netns.SocketOptions{})
	if err == nil {
		return c, nil
	}
	if c6, err6 := ns.DialTCP(ctx, netip.AddrPortFrom(netip.IPv6Loopback(), port), netns.SocketOptions{}); err6 == nil {
		return c6, nil
	}
	return nil, err
}

// printed reports whether the last run's output begins with some lines of which one is line.
func (t *task) printed(line string) bool {
	t.mu.Lock()
	offset := t.logFrom
	t.mu.Unlock()
	f, err := os.Open(t.log)
	if err != nil {
		return false
	}
	defer f.Close()
	head, err := io.ReadAll(io.NewSectionReader(f, offset, 64<<10))
	if err != nil {
		return false
	}
	for l := range bytes.Lines(head) {
		if string(bytes.TrimRight(l, "\r\n")) == line {
			return true
		}
	}
	return false
}
