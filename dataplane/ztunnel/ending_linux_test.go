// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// TestResetDuringDrain: what a client ends by itself while the proxy drains was not cut by the deadline, and does not say so.
func TestResetDuringDrain(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	app(t, l.b, 8080)
	c, _ := holdConnection(t, l)
	var draining *proxy
	l.zb.proxies(func(p *proxy) { draining = p })
	l.zb.stop()
	await(t, "the drain begins", draining.ended)
	c.SetLinger(0)
	c.Close()
	e := l.zb.log.take(t, "the destination", complete)
	if strings.Contains(e.Error, errDrained.Error()) {
		t.Errorf("error %q", e.Error)
	}
}

// fullQueue listens on port in ns and lets nobody in any more: connecting hangs.
func fullQueue(t *testing.T, ns *netns.NS, port uint16) {
	t.Helper()
	fd := -1
	nstest.In(t, ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	c, err := ns.DialTCP(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

// TestDeniedWhileTheApplicationIsDialled: the answer is the one that the log gives, 401, though a connect fails with it.
func TestDeniedWhileTheApplicationIsDialled(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	fullQueue(t, l.b, 8080)
	answer := make(chan error, 1)
	go func() { answer <- requestTunnel(t, l, identityA, "10.77.0.3:8080") }()
	eventually(t, "the tunnel is asked for", func() bool { return len(l.zb.inbound()) == 1 })
	l.write(t, localXDS+denyWeb)
	err := <-answer
	if status := (*hbone.StatusError)(nil); !errors.As(err, &status) || status.Code != http.StatusUnauthorized {
		t.Errorf("answered with %v, want 401", err)
	}
	if e := l.zb.log.take(t, "the destination", complete); e.Record.Flags != telemetry.FlagDeny {
		t.Errorf("flags %s, error %q", e.Record.Flags, e.Error)
	}
}

// TestStopUnderLoad: callers that never pause and no successor must not keep a proxy from ending at its deadline.
func TestStopUnderLoad(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	app(t, l.b, 8080)
	ctx, stopCalls := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	var made atomic.Int64
	for range 8 {
		calls.Go(func() {
			for ctx.Err() == nil {
				_, _, _ = call(ctx, l.x, netip.AddrPortFrom(addrB.v4, 8080), "x")
				made.Add(1)
			}
		})
	}
	eventually(t, "calls are made", func() bool { return made.Load() > 50 })
	began := time.Now()
	l.zb.stop()
	await(t, "the ztunnel has stopped", l.zb.done)
	if took := time.Since(began); took > l.zb.cfg.Time.Drain+patience {
		t.Errorf("stopped after %s, the deadline is %s", took, l.zb.cfg.Time.Drain)
	}
	stopCalls()
	calls.Wait()
}
