// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// certificate is one that every ztunnel of these tests trusts.
func certificate(t *testing.T, uri string) *identity.Certificate {
	t.Helper()
	id, err := mesh.ParseIdentity(uri)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := identity.NewFakeCA().Sign(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// peerXDS makes the stranger an HBONE workload with a service.
const peerXDS = localXDS + `
- {name: peer, namespace: far, hostname: peer.far, vips: [/10.96.0.4], ports: {80: 9000}}
`

func withPeer(text string) string {
	return strings.Replace(text, "services:\n- {name: web", `- {uid: peer, name: peer, namespace: far, serviceAccount: peer, workloadIps: ["10.77.0.4"], protocol: HBONE,
   services: {far/peer.far: {80: 9000}}}
services:
- {name: web`, 1)
}

// serveRequests is a foreign HBONE server in the stranger's namespace: it hands every request out and refuses it.
func serveRequests(t *testing.T, l *lab, as string) <-chan *hbone.Inbound {
	t.Helper()
	cert := certificate(t, as)
	requests := make(chan *hbone.Inbound, 1)
	server := hbone.NewServer(hbone.ServerConfig{
		TLS: func(context.Context) (*tls.Config, error) { return identity.ServerTLS(cert, "cluster.local"), nil },
		Handler: func(_ context.Context, in *hbone.Inbound) {
			requests <- in
			in.Refuse(503)
		},
	})
	listener, err := l.x.ListenTCP(t.Context(), netip.AddrPortFrom(addrX.v4, mesh.PortHBONE), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("foreign server: %v", err)
		}
	})
	return requests
}

// TestRequest shows what a foreign HBONE server is sent (A1.3), and that it must be who the catalog says (A1.6).
func TestRequest(t *testing.T) {
	l := newLab(t)
	l.write(t, withPeer(peerXDS))
	l.enrol(t)
	vip := netip.MustParseAddrPort("10.96.0.4:80")

	t.Run("nobody listens", func(t *testing.T) {
		if _, _, err := call(t.Context(), l.a, vip, "x"); err == nil {
			t.Error("answered")
		}
		if e := l.za.log.take(t, "the source", complete); e.Record.Flags != telemetry.FlagConnect {
			t.Errorf("flags %s, error %q", e.Record.Flags, e.Error)
		}
	})
	t.Run("the request", func(t *testing.T) {
		requests := serveRequests(t, l, "spiffe://cluster.local/ns/far/sa/peer")
		if _, _, err := call(t.Context(), l.a, vip, "x"); err == nil {
			t.Error("answered")
		}
		in := <-requests
		out := l.za.log.take(t, "the source", complete)
		if in.Method != http.MethodConnect || in.Authority != "10.77.0.4:9000" {
			t.Errorf("%s %s", in.Method, in.Authority)
		}
		client, host, err := telemetry.ParseForwarded(in.Get(telemetry.HeaderForwarded))
		if err != nil || host != "peer.far" || client != out.Record.Src.Addr {
			t.Errorf("forwarded %q", in.Get(telemetry.HeaderForwarded))
		}
		if b := in.Get(telemetry.HeaderBaggage); b != "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web" {
			t.Errorf("baggage %q", b)
		}
		if tp, err := telemetry.ParseTraceparent(in.Get(telemetry.HeaderTraceparent)); err != nil || tp.TraceID() != out.Record.TraceID {
			t.Errorf("traceparent %q", in.Get(telemetry.HeaderTraceparent))
		}
		if id, err := identity.PeerIdentity(in.TLS); err != nil || id.String() != identityA || in.TLS.ServerName != "" || in.TLS.Version != tls.VersionTLS13 {
			t.Errorf("client %s, server name %q, version %x", id, in.TLS.ServerName, in.TLS.Version)
		}
	})
	t.Run("the wrong server", func(t *testing.T) {
		eventually(t, "the pooled connection is gone", func() bool { return l.za.pooled() == 0 })
		serveRequests(t, l, "spiffe://cluster.local/ns/far/sa/impostor")
		if _, _, err := call(t.Context(), l.a, vip, "x"); err == nil {
			t.Error("answered")
		}
		if e := l.za.log.take(t, "the source", complete); e.Record.Flags != telemetry.FlagTLS || !strings.Contains(e.Error, "impostor") {
			t.Errorf("flags %s, error %q", e.Record.Flags, e.Error)
		}
	})
}

// TestStatuses asks a ztunnel with a foreign client for what it must refuse (A1.3).
func TestStatuses(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	app(t, l.b, 8080)
	for _, c := range []struct {
		name, as, authority string
		status              int
		log                 string
	}{
		{"an address of another pod", identityA, "10.77.0.2:8080", 400, "10.77.0.2"},
		{"no address", identityA, "nonsense", 400, "authority"},
		{"a port of the proxy", identityA, "10.77.0.3:15006", 503, "self call"},
		{"a closed port", identityA, "10.77.0.3:9", 503, "refused"},
		{"a host that is not the pod's", identityA, "web.shop.svc.cluster.local:80", 503, "no endpoint"},
		{"a port that the service lacks", identityA, "cart.shop.svc.cluster.local:81", 503, "no port 81"},
		{"its own host", identityA, "cart.shop.svc.cluster.local:80", 200, ""},
		{"its address", identityA, "10.77.0.3:8080", 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := requestTunnel(t, l, c.as, c.authority)
			var status *hbone.StatusError
			switch {
			case c.status == 200 && err != nil:
				t.Errorf("refused: %v", err)
			case c.status != 200 && (!errors.As(err, &status) || status.Code != c.status):
				t.Errorf("got %v, want status %d", err, c.status)
			}
			e := l.zb.log.take(t, "the destination", func(telemetry.Entry) bool { return true })
			if !strings.Contains(e.Error, c.log) { // an accepted one ends with its connection, which may count as an error
				t.Errorf("error %q, want one about %q", e.Error, c.log)
			}
		})
	}
	t.Run("another trust domain", func(t *testing.T) {
		err := requestTunnel(t, l, "spiffe://elsewhere/ns/shop/sa/web", "10.77.0.3:8080")
		if err == nil {
			t.Error("accepted")
		}
		e := l.zb.log.take(t, "the destination", func(e telemetry.Entry) bool { return e.Message == telemetry.MessageFailed })
		if e.Record.Flags != telemetry.FlagTLS || !strings.Contains(e.Error, "trust domain") {
			t.Errorf("flags %s, error %q", e.Record.Flags, e.Error)
		}
	})
}

// requestTunnel asks b's ztunnel for one tunnel, from the stranger's namespace with somebody's identity.
func requestTunnel(t *testing.T, l *lab, as, authority string) error {
	t.Helper()
	cert := certificate(t, as)
	pool := hbone.NewPool(hbone.PoolConfig{
		Dial: func(ctx context.Context, k hbone.Key) (*net.TCPConn, error) {
			return l.x.DialTCP(ctx, k.Addr, netns.SocketOptions{})
		},
		TLS: func(context.Context, hbone.Key) (*tls.Config, error) {
			return identity.ClientTLSForSANs(cert, []string{identityB}), nil
		},
	})
	var running sync.WaitGroup
	running.Go(func() { _ = pool.Run(t.Context()) })
	defer running.Wait()
	defer pool.Drain()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := pool.Open(ctx, hbone.Key{Source: as, Addr: netip.AddrPortFrom(addrB.v4, mesh.PortHBONE)}, &hbone.Request{Authority: authority})
	if err == nil {
		s.Reset(0)
	}
	return err
}

// TestWaitsForItself: a pod whose first packet is faster than the control plane waits, and does not fail (LC-10).
func TestWaitsForItself(t *testing.T) {
	l := newLab(t)
	l.write(t, strings.ReplaceAll(localXDS, "name: web, namespace: shop, serviceAccount: web", "name: other, namespace: shop, serviceAccount: web"))
	l.enrol(t)
	app(t, l.b, 8080)
	result := make(chan error, 1)
	go func() {
		_, _, err := call(context.Background(), l.a, netip.AddrPortFrom(addrB.v4, 8080), "x")
		result <- err
	}()
	eventually(t, "the call has arrived", func() bool { return l.za.work.n.Load() > 1 })
	l.write(t, localXDS)
	if err := <-result; err != nil {
		t.Errorf("the call failed: %v", err)
	}
	if e := l.za.log.take(t, "the source", complete); e.Record.Src.Identity.String() != identityA {
		t.Errorf("identity %s", e.Record.Src.Identity)
	}

	l.write(t, strings.ReplaceAll(localXDS, "serviceAccount: web", "serviceAccount: thief"))
	eventually(t, "the catalog has changed", func() bool { return l.za.catalog.Load().WorkloadByName("shop", "web", "thief") != nil })
	if _, _, err := call(t.Context(), l.a, netip.AddrPortFrom(addrB.v4, 8080), "x"); err == nil {
		t.Error("a pod that the configuration does not know was served")
	}
	e := l.za.log.take(t, "the source", func(telemetry.Entry) bool { return true })
	if !strings.Contains(e.Error, "unknown source") || e.Message != telemetry.MessageFailed {
		t.Errorf("%s, error %q", e.Message, e.Error)
	}
}

// TestFootprint counts what a tunnel costs: one goroutine on each side in steady state (design, decision 9), and nothing
// once it is gone.
func TestFootprint(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	app(t, l.b, 8080)
	carried(t, l.a, netip.AddrPortFrom(addrB.v4, 8080), addrA.v4)
	tunnelled(t, l, addrA.v4, netip.AddrPortFrom(addrB.v4, 8080))
	const tunnels, shared = 40, 14 // as many connections are made for so many at most
	hold := func() (held []*net.TCPConn) {
		for range tunnels {
			c, err := l.a.DialTCP(t.Context(), netip.AddrPortFrom(addrB.v4, 8080), netns.SocketOptions{})
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, c)
		}
		eventually(t, "all tunnels stand", func() bool { return len(l.zb.inbound()) == tunnels })
		return held
	}
	first := hold()
	eventually(t, "the shared connections stand", func() bool { return l.za.pooled() == min(shared, 2*runtime.GOMAXPROCS(0)) })
	for _, c := range first {
		c.Close()
	}
	eventually(t, "the first tunnels are gone", func() bool { return len(l.zb.inbound()) == 0 })
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	held := hold()
	const perTunnel = 3 // source, destination, and the application of this test
	eventually(t, "no goroutine but the tunnels' is left", func() bool { return runtime.NumGoroutine() <= goroutines+perTunnel*tunnels })
	for _, c := range held {
		c.Close()
	}
	eventually(t, "all goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "all descriptors are closed", func() bool { return openFiles(t) <= files })
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestDedicated serves the one pod in whose namespace the process lives, with no agent.
func TestDedicated(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	cfg := *l.za.cfg
	l.za.stop()
	<-l.za.done
	cfg.Dedicated, cfg.ZDSPath = &Info{Name: "web", Namespace: "shop", ServiceAccount: "web"}, ""
	cfg.Admin, cfg.Metrics, cfg.Readiness = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	z, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	app(t, l.b, 8080)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	// The namespace is the thread's when Run begins; everything else is opened from there.
	go func() { done <- l.a.Do(func() error { return z.Run(ctx) }) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("ztunnel: %v", err)
		}
	}()
	eventually(t, "the ztunnel is ready", func() bool { return len(z.readiness.Pending()) == 0 })
	carried(t, l.a, netip.AddrPortFrom(addrB.v4, 8080), addrA.v4)
	in := l.zb.log.take(t, "the destination", complete)
	if in.Record.Src.Identity.String() != identityA {
		t.Errorf("source %s", in.Record.Src.Identity)
	}
}
