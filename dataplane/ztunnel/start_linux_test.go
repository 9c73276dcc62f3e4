// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/xds"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// slowControl answers for addresses at once, and for policies when it is told to.
type slowControl struct {
	addr     string
	asked    chan struct{} // closed when the addresses were acknowledged
	policies chan struct{} // closed by the test
}

func startSlowControl(t *testing.T, document string) *slowControl {
	t.Helper()
	nstest.Require(t)
	local, err := xds.DecodeLocal([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	// The tests' own namespace is new, and nothing else in it needs its loopback.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &slowControl{addr: listener.Addr().String(), asked: make(chan struct{}), policies: make(chan struct{})}
	srv := grpc.NewServer(append(xds.ServerOptions(), grpc.ForceServerCodecV2(xds.Codec()),
		grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error { return c.serve(s, local) }))...)
	var g sync.WaitGroup
	g.Go(func() { _ = srv.Serve(listener) })
	t.Cleanup(func() {
		srv.Stop()
		g.Wait()
	})
	return c
}

func (c *slowControl) serve(s grpc.ServerStream, local xds.Local) error {
	addresses := &xds.DeltaDiscoveryResponse{TypeURL: xds.TypeAddress, Nonce: "addresses"}
	policies := &xds.DeltaDiscoveryResponse{TypeURL: xds.TypeAuthorization, Nonce: "policies"}
	add := func(to *xds.DeltaDiscoveryResponse, name string, value []byte, err error) {
		if err == nil {
			to.Resources = append(to.Resources, xds.Resource{Name: name, Version: "1", Value: value})
		}
	}
	for _, w := range local.Workloads {
		name, value, err := xds.EncodeWorkload(w)
		add(addresses, name, value, err)
	}
	for _, svc := range local.Services {
		name, value, err := xds.EncodeService(svc)
		add(addresses, name, value, err)
	}
	for _, p := range local.Policies {
		name, value, err := xds.EncodePolicy(p)
		add(policies, name, value, err)
	}
	for {
		r := &xds.DeltaDiscoveryRequest{}
		if err := s.RecvMsg(r); err != nil {
			return nil
		}
		switch {
		case r.TypeURL == xds.TypeAddress && r.ResponseNonce == "":
			if err := s.SendMsg(addresses); err != nil {
				return err
			}
		case r.TypeURL == xds.TypeAddress:
			close(c.asked)
			select {
			case <-c.policies:
			case <-s.Context().Done():
				return nil
			}
			if err := s.SendMsg(policies); err != nil {
				return err
			}
		}
	}
}

func await(t *testing.T, what string, happened <-chan struct{}) {
	t.Helper()
	select {
	case <-happened:
	case <-time.After(patience):
		t.Fatalf("timed out waiting until %s", what)
	}
}

// startFromControl starts a ztunnel for cart in l.b that learns everything from c; it does not wait for readiness.
func startFromControl(t *testing.T, l *lab, c *slowControl) *node {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "z.sock")
	n := &node{log: new(entries), done: make(chan struct{})}
	w := zds.Workload{UID: "uid-cart", Name: "cart", Namespace: "shop", ServiceAccount: "cart"}
	n.agent = zds.NewServer(zds.ServerConfig{Path: socket, Snapshot: func() []zds.Entry {
		return []zds.Entry{{Workload: w, NS: l.b}}
	}, Log: slog.New(slog.DiscardHandler)})
	var err error
	n.Ztunnel, err = New(Config{
		Node: "node", ZDSPath: socket, XDS: XDS{Address: "http://" + c.addr}, CA: CA{Fake: true}, IPv6: true, ReusePort: true,
		Time:  Timers{Drain: time.Second, LocalWorkload: time.Second, Connect: 2 * time.Second},
		Admin: "127.0.0.1:0", Metrics: "127.0.0.1:0", Readiness: "127.0.0.1:0",
		AccessLog: n.log, AccessLogJSON: true, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	agentCtx, stopAgent := context.WithCancel(context.Background())
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	var running sync.WaitGroup
	running.Go(func() { _ = n.agent.Run(agentCtx) })
	running.Go(func() {
		defer close(n.done)
		if err := n.Run(ctx); err != nil {
			t.Errorf("ztunnel: %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		<-n.done
		stopAgent()
		running.Wait()
	})
	return n
}

// TestNobodyIsServedBeforeThePoliciesAreKnown: addresses and policies come in two updates, and between them there must be no
// listener. Upstream waits for all of its first configuration too.
func TestNobodyIsServedBeforeThePoliciesAreKnown(t *testing.T) {
	l := newLab(t)
	app(t, l.b, 8080)
	if _, err := capture.Apply(t.Context(), l.b, capture.NewPlan(capture.Options{IPv4: true, IPv6: true})); err != nil {
		t.Fatal(err)
	}
	c := startSlowControl(t, localXDS+denyWeb)
	n := startFromControl(t, l, c)
	await(t, "the addresses are acknowledged", c.asked)
	eventually(t, "the addresses are known", func() bool { w, _, _ := n.catalog.Load().Len(); return w == 2 })
	// Without the wait a proxy stands within milliseconds.
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		err := requestTunnel(t, l, identityA, "10.77.0.3:8080")
		if failed := (*hbone.ConnectError)(nil); !errors.As(err, &failed) || failed.Stage != hbone.StageTCP {
			t.Fatalf("before the policies: %v, want no connection", err)
		}
	}
	rec := httptest.NewRecorder()
	n.readiness.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/healthz/ready", nil))
	if rec.Code == http.StatusOK || !strings.Contains(rec.Body.String(), pendingState) || n.agent.Connected() != 0 {
		t.Errorf("before the policies: %d %q, %d connections to the agent", rec.Code, rec.Body, n.agent.Connected())
	}
	close(c.policies)
	eventually(t, "the ztunnel is ready", func() bool { return len(n.readiness.Pending()) == 0 })
	err := requestTunnel(t, l, identityA, "10.77.0.3:8080")
	if status := (*hbone.StatusError)(nil); !errors.As(err, &status) || status.Code != http.StatusUnauthorized {
		t.Errorf("after the policies: %v, want 401", err)
	}
}

// TestStopsWhileItWaitsForThePolicies: a control plane that never answers must not keep a ztunnel from stopping.
func TestStopsWhileItWaitsForThePolicies(t *testing.T) {
	l := newLab(t)
	c := startSlowControl(t, localXDS)
	n := startFromControl(t, l, c)
	await(t, "the addresses are acknowledged", c.asked)
	n.stop()
	await(t, "the ztunnel has stopped", n.done)
	listener, err := l.b.ListenTCP(t.Context(), netip.MustParseAddrPort("[::]:15008"), netns.SocketOptions{})
	if err != nil {
		t.Fatalf("a listener was opened: %v", err)
	}
	listener.Close()
}
