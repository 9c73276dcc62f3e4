// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

func TestAsOrdinaryUser(t *testing.T) { nstest.AsOrdinaryUser(t, "^TestTwoZtunnels$") }

// TestTwoZtunnels carries traffic between two pods through two ztunnels, with no control plane at all.
func TestTwoZtunnels(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	for _, ns := range []*netns.NS{l.a, l.b, l.x} {
		app(t, ns, 8080)
	}
	for _, c := range []struct {
		name string
		run  func(*testing.T, *lab)
	}{
		{"pod address", testPodAddress},
		{"service address", testServiceAddress},
		{"half-close", testHalfClose},
		{"self-call", testSelfCall},
		{"plaintext inbound", testPlaintextInbound},
		{"unknown destination", testUnknownDestination},
		{"refused application port", testRefusedPort},
		{"calls of the proxy's own ports", testOwnPorts},
		{"metrics", testMetrics},
		{"config dump", testConfigDump},
		{"deny", testDeny},
		{"late denial", testLateDenial},
		{"removal cuts at once", testRemoval},
		{"without capture nothing is tunnelled", testUncaptured},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(t, l)
			if !t.Failed() && l.za.log.count()+l.zb.log.count() > 0 {
				t.Errorf("access log lines that nobody expected:\n%s%s", l.za.log, l.zb.log)
			}
		})
	}
}

// carried calls from one pod and checks what the application saw.
func carried(t *testing.T, from *netns.NS, to netip.AddrPort, wantSource netip.Addr) {
	t.Helper()
	seen, echo, err := call(t.Context(), from, to, "hello")
	if err != nil {
		t.Fatalf("call %s: %v", to, err)
	}
	if seen != wantSource.String() {
		t.Errorf("the application saw %s, want %s", seen, wantSource)
	}
	if echo != "hello" {
		t.Errorf("echo = %q", echo)
	}
}

// tunnelled takes the two log lines of one tunnelled call from a to b and checks both.
func tunnelled(t *testing.T, l *lab, src netip.Addr, app netip.AddrPort) (outbound, inbound telemetry.Entry) {
	t.Helper()
	outbound = l.za.log.take(t, "the source", complete)
	inbound = l.zb.log.take(t, "the destination", func(e telemetry.Entry) bool {
		return complete(e) && e.Record.TraceID == outbound.Record.TraceID
	})
	hbone := netip.AddrPortFrom(app.Addr(), mesh.PortHBONE)
	for _, e := range []telemetry.Entry{outbound, inbound} {
		r := e.Record
		if r.Src.Identity.String() != identityA || r.Dst.Identity.String() != identityB || r.Security != telemetry.MutualTLS {
			t.Errorf("%s: identities %s -> %s", r.Direction, r.Src.Identity, r.Dst.Identity)
		}
		if r.Src.Addr.Addr() != src || r.Dst.Addr != hbone || r.HBONEAddr != app {
			t.Errorf("%s: %s -> %s (%s), want %s -> %s (%s)", r.Direction, r.Src.Addr, r.Dst.Addr, r.HBONEAddr, src, hbone, app)
		}
		if r.Src.Name != "web" || r.Dst.Name != "cart" || e.Error != "" {
			t.Errorf("%s: %s -> %s, error %q", r.Direction, r.Src.Name, r.Dst.Name, e.Error)
		}
	}
	if outbound.Record.TraceID == "" || outbound.Record.BytesSent != inbound.Record.BytesRecv || outbound.Record.BytesRecv != inbound.Record.BytesSent {
		t.Errorf("the two sides disagree: %+v and %+v", outbound.Record, inbound.Record)
	}
	return outbound, inbound
}

func testPodAddress(t *testing.T, l *lab) {
	addrA.each(t, func(t *testing.T, pick func(family) netip.Addr) {
		to := netip.AddrPortFrom(pick(addrB), 8080)
		carried(t, l.a, to, pick(addrA))
		out, in := tunnelled(t, l, pick(addrA), to)
		if out.Record.BytesSent != 5 || in.Record.Upstream.Addr() != pick(addrA) {
			t.Errorf("sent %d bytes, application dialled from %s", out.Record.BytesSent, in.Record.Upstream)
		}
	})
}

func testServiceAddress(t *testing.T, l *lab) {
	addrA.each(t, func(t *testing.T, pick func(family) netip.Addr) {
		carried(t, l.a, netip.AddrPortFrom(pick(vipB), 80), pick(addrA))
		out, in := tunnelled(t, l, pick(addrA), netip.AddrPortFrom(pick(addrB), 8080))
		for _, e := range []telemetry.Entry{out, in} {
			if e.Record.Service != "cart.shop.svc.cluster.local" {
				t.Errorf("%s: service %q", e.Record.Direction, e.Record.Service)
			}
		}
	})
}

// testHalfClose sends a tail after the other side has ended, both ways.
func testHalfClose(t *testing.T, l *lab) {
	listener, err := l.b.ListenTCP(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), 8090), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := l.a.DialTCP(t.Context(), netip.AddrPortFrom(addrB.v4, 8090), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	tail := bytes.Repeat([]byte("tail "), 100_000)
	for _, c := range []struct {
		name     string
		from, to *net.TCPConn
	}{{"server first", server, client}, {"then the client", client, server}} {
		var sending sync.WaitGroup
		sending.Go(func() {
			if _, err := c.from.Write(tail); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			_ = c.from.CloseWrite()
		})
		_ = c.to.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(c.to)
		sending.Wait()
		if err != nil || !bytes.Equal(got, tail) {
			t.Fatalf("%s: %d bytes of %d, %v", c.name, len(got), len(tail), err)
		}
	}
	tunnelled(t, l, addrA.v4, netip.AddrPortFrom(addrB.v4, 8090))
}

func testSelfCall(t *testing.T, l *lab) {
	addrA.each(t, func(t *testing.T, pick func(family) netip.Addr) {
		carried(t, l.a, netip.AddrPortFrom(pick(vipA), 80), pick(addrA))
		out, in := l.za.log.take(t, "one half", complete), l.za.log.take(t, "the other half", complete)
		if out.Record.TraceID != in.Record.TraceID || out.Record.Direction == in.Record.Direction {
			t.Errorf("not two halves of one connection: %+v, %+v", out.Record, in.Record)
		}
		for _, e := range []telemetry.Entry{out, in} {
			if e.Record.Src.Identity.String() != identityA || e.Record.Dst.Identity.String() != identityA {
				t.Errorf("%s: identities %s -> %s", e.Record.Direction, e.Record.Src.Identity, e.Record.Dst.Identity)
			}
		}
		carried(t, l.a, netip.AddrPortFrom(pick(addrA), 8080), pick(addrA))
		if l.za.log.count() > 0 {
			t.Error("a call of the pod's own address went through the proxy")
		}
	})
}

func testPlaintextInbound(t *testing.T, l *lab) {
	addrA.each(t, func(t *testing.T, pick func(family) netip.Addr) {
		to := netip.AddrPortFrom(pick(addrB), 8080)
		carried(t, l.x, to, pick(addrX))
		in := l.zb.log.take(t, "the destination", func(e telemetry.Entry) bool {
			return complete(e) && e.Record.Src.Addr.Addr() == pick(addrX)
		})
		if r := in.Record; r.Security == telemetry.MutualTLS || r.Dst.Addr != to || r.Direction != telemetry.Inbound || in.Error != "" {
			t.Errorf("got %+v, error %q", r, in.Error)
		}
	})
}

func testUnknownDestination(t *testing.T, l *lab) {
	addrA.each(t, func(t *testing.T, pick func(family) netip.Addr) {
		to := netip.AddrPortFrom(pick(addrX), 8080)
		carried(t, l.a, to, pick(addrA))
		out := l.za.log.take(t, "the source", func(e telemetry.Entry) bool { return complete(e) && e.Record.Dst.Addr == to })
		if r := out.Record; r.Security == telemetry.MutualTLS || r.Dst.Name != "" || r.Direction != telemetry.Outbound {
			t.Errorf("got %+v", r)
		}
	})
}

func testRefusedPort(t *testing.T, l *lab) {
	to := netip.AddrPortFrom(addrB.v4, 9)
	if _, _, err := call(t.Context(), l.a, to, "x"); err == nil {
		t.Error("a closed port answered")
	}
	out := l.za.log.take(t, "the source", complete)
	in := l.zb.log.take(t, "the destination", complete)
	if out.Record.Flags != telemetry.FlagConnect || !strings.Contains(out.Error, "503") {
		t.Errorf("source: flags %s, error %q", out.Record.Flags, out.Error)
	}
	if in.Record.Flags != telemetry.FlagConnect || !strings.Contains(in.Error, "refused") {
		t.Errorf("destination: flags %s, error %q", in.Record.Flags, in.Error)
	}
}

// testOwnPorts calls the proxy itself by every way that could make it call itself for ever (A1.1).
func testOwnPorts(t *testing.T, l *lab) {
	for _, c := range []struct {
		name string
		from *netns.NS
		to   netip.AddrPort
		log  *entries
	}{
		{"own outbound port by loopback", l.a, netip.MustParseAddrPort("127.0.0.1:15001"), l.za.log},
		{"own plaintext port by loopback", l.a, netip.MustParseAddrPort("[::1]:15006"), l.za.log},
		{"own outbound port by address", l.a, netip.AddrPortFrom(addrA.v4, 15001), l.za.log},
		{"another pod's outbound port", l.a, netip.AddrPortFrom(addrB.v4, 15001), l.zb.log},
		{"another pod's tunnel port, tunnelled", l.a, netip.AddrPortFrom(addrB.v6, 15008), l.zb.log},
		{"a pod's plaintext port from outside", l.x, netip.AddrPortFrom(addrB.v4, 15006), l.zb.log},
	} {
		t.Run(c.name, func(t *testing.T) {
			if seen, echo, err := call(t.Context(), c.from, c.to, "x"); err == nil {
				t.Errorf("answered %q %q", seen, echo)
			}
			e := c.log.take(t, "the refusal", func(e telemetry.Entry) bool { return e.Message == telemetry.MessageFailed })
			if !strings.Contains(e.Error, "self call") {
				t.Errorf("error %q", e.Error)
			}
			if c.from == l.a && c.log == l.zb.log { // the pod's own proxy reports what the other answered
				if out := l.za.log.take(t, "the source", complete); !strings.Contains(out.Error, "503") {
					t.Errorf("source: error %q", out.Error)
				}
			}
		})
	}
}

func testMetrics(t *testing.T, l *lab) {
	both := []string{`source_principal="` + identityA + `"`, `destination_principal="` + identityB + `"`, `connection_security_policy="mutual_tls"`,
		`source_workload="web"`, `destination_workload="cart"`, `destination_service="cart.shop.svc.cluster.local"`, `response_flags="-"`}
	for _, n := range []struct {
		node     *node
		reporter string
	}{{l.za, "source"}, {l.zb, "destination"}} {
		labels := append([]string{`reporter="` + n.reporter + `"`}, both...)
		for _, name := range []string{"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total",
			"istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"} {
			if n.node.sample(name, labels...) == "" {
				t.Errorf("%s: no %s", n.reporter, name)
			}
		}
		if s := n.node.sample("istio_tcp_connections_failed_total", `reporter="`+n.reporter+`"`, `response_flags="CONNECT"`); s == "" {
			t.Errorf("%s: no failed connection", n.reporter)
		}
	}
	// Both reporters agree on the direction (A7.1): the request of each of the service's two calls was 5 bytes.
	received := "istio_tcp_received_bytes_total"
	if s := l.zb.sample(received, append([]string{`reporter="destination"`}, both...)...); s == "" {
		t.Error("no bytes")
	}
	if !strings.Contains(l.za.scrape(), "workload_manager_active_proxy_count 1") {
		t.Error("active proxies are not counted")
	}
}

func testConfigDump(t *testing.T, l *lab) {
	hold, release := holdConnection(t, l)
	defer release()
	raw, err := json.Marshal(l.zb.dump())
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Workloads     []admin.Workload
		Services      []admin.Service
		Certificates  []admin.Certificates
		WorkloadState map[string]admin.WorkloadState
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Workloads) != 2 || len(d.Services) != 2 {
		t.Errorf("%d workloads, %d services", len(d.Workloads), len(d.Services))
	}
	if len(d.Certificates) != 1 || d.Certificates[0].Identity != identityB || d.Certificates[0].State != "Available" || len(d.Certificates[0].CertChain) == 0 {
		t.Errorf("certificates: %+v", d.Certificates)
	}
	state := d.WorkloadState["uid-cart"]
	if state.State != "Up" || state.Info.ServiceAccount != "cart" || len(state.Connections.Inbound) != 1 {
		t.Fatalf("state: %+v", state)
	}
	if c := state.Connections.Inbound[0]; c.Protocol != "HBONE" || c.ActualDst != netip.AddrPortFrom(addrB.v4, 8080).String() {
		t.Errorf("connection %+v", c)
	}
	_ = hold
}

// holdConnection opens a tunnelled connection from a to b that stays.
func holdConnection(t *testing.T, l *lab) (c *net.TCPConn, release func()) {
	t.Helper()
	c, err := l.a.DialTCP(t.Context(), netip.AddrPortFrom(addrB.v4, 8080), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is listed", func() bool { return len(l.zb.inbound()) == 1 })
	return c, func() {
		c.Close()
		l.za.log.take(t, "the held connection's source", complete)
		l.zb.log.take(t, "the held connection's destination", complete)
	}
}

// awaitPolicies writes the document and waits until both ztunnels know n policies.
func awaitPolicies(t *testing.T, l *lab, text string, n int) {
	t.Helper()
	l.write(t, text)
	eventually(t, "the policies are known", func() bool {
		for _, z := range []*node{l.za, l.zb} {
			if _, _, policies := z.catalog.Load().Len(); policies != n {
				return false
			}
		}
		return true
	})
}

func testDeny(t *testing.T, l *lab) {
	awaitPolicies(t, l, localXDS+denyWeb, 1)
	defer awaitPolicies(t, l, localXDS, 0)
	addrA.each(t, func(t *testing.T, pick func(family) netip.Addr) {
		if _, _, err := call(t.Context(), l.a, netip.AddrPortFrom(pick(addrB), 8080), "x"); err == nil {
			t.Error("the policy was not enforced")
		}
		out := l.za.log.take(t, "the source", complete)
		in := l.zb.log.take(t, "the destination", complete)
		if out.Record.Flags != telemetry.FlagDeny || !strings.Contains(out.Error, "401") || out.Record.Dst.Identity.String() != identityB {
			t.Errorf("source: flags %s, error %q, destination %s", out.Record.Flags, out.Error, out.Record.Dst.Identity)
		}
		if in.Record.Flags != telemetry.FlagDeny || in.Record.Policy != "shop/no-web" || !strings.Contains(in.Error, "shop/no-web") {
			t.Errorf("destination: flags %s, policy %s, error %q", in.Record.Flags, in.Record.Policy, in.Error)
		}
		if l.zb.sample("istio_tcp_connections_failed_total", `response_flags="DENY"`) == "" {
			t.Error("the denial is not counted")
		}
		carried(t, l.x, netip.AddrPortFrom(pick(addrB), 8080), pick(addrX)) // the policy names web alone
		l.zb.log.take(t, "the stranger's call", complete)
	})
}

func testLateDenial(t *testing.T, l *lab) {
	c, err := l.a.DialTCP(t.Context(), netip.AddrPortFrom(addrB.v4, 8080), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "the connection stands", func() bool { return len(l.zb.inbound()) == 1 })
	awaitPolicies(t, l, localXDS+denyWeb, 1)
	defer awaitPolicies(t, l, localXDS, 0)
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, syscall.EAGAIN) || isTimeout(err) {
		t.Errorf("the connection lives on: %v", err)
	}
	in := l.zb.log.take(t, "the destination", complete)
	if !strings.Contains(in.Error, "AuthorizationPolicyLateRejection") || in.Record.Policy != "shop/no-web" {
		t.Errorf("error %q, policy %q", in.Error, in.Record.Policy)
	}
	l.za.log.take(t, "the source", complete)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func testRemoval(t *testing.T, l *lab) {
	c, _ := holdConnection(t, l)
	defer c.Close()
	if err := l.zb.agent.Del(t.Context(), "uid-cart"); err != nil {
		t.Fatal(err)
	}
	in := l.zb.log.take(t, "the destination", complete)
	if !strings.Contains(in.Error, errPodGone.Error()) {
		t.Errorf("error %q", in.Error)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); isTimeout(err) {
		t.Error("the connection lives on")
	}
	w := zds.Workload{UID: "uid-cart", Name: "cart", Namespace: "shop", ServiceAccount: "cart"}
	if err := l.zb.agent.Add(t.Context(), w, l.b); err != nil {
		t.Fatal(err)
	}
	l.za.log.take(t, "the source", complete)
	carried(t, l.a, netip.AddrPortFrom(addrB.v4, 8080), addrA.v4)
	tunnelled(t, l, addrA.v4, netip.AddrPortFrom(addrB.v4, 8080))
}

// testUncaptured is the negative control: the same call without redirection leaves no trace in any proxy.
func testUncaptured(t *testing.T, l *lab) {
	for _, ns := range []*netns.NS{l.a, l.b} {
		if err := capture.Remove(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
	}
	before := l.za.log.count() + l.zb.log.count()
	addrA.each(t, func(t *testing.T, pick func(family) netip.Addr) {
		carried(t, l.a, netip.AddrPortFrom(pick(addrB), 8080), pick(addrA))
	})
	if after := l.za.log.count() + l.zb.log.count(); after != before {
		t.Errorf("%d new access log lines", after-before)
	}
}

// TestUpgrade replaces a ztunnel while a pod is called without pause: no call may fail, and a connection that lasts is cut
// at the deadline and not before (A1.10).
func TestUpgrade(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	app(t, l.b, 8080)
	held, _ := holdConnection(t, l)
	defer held.Close()

	ctx, stopCalls := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	var mu sync.Mutex
	made, failures := 0, []error(nil)
	for range 4 {
		calls.Go(func() {
			for ctx.Err() == nil {
				_, _, err := call(context.WithoutCancel(ctx), l.a, netip.AddrPortFrom(addrB.v4, 8080), "x")
				mu.Lock()
				made++
				if err != nil {
					failures = append(failures, err)
				}
				mu.Unlock()
			}
		})
	}
	progress := func(n int) {
		mu.Lock()
		from := made
		mu.Unlock()
		eventually(t, fmt.Sprintf("%d more calls were made", n), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return made >= from+n
		})
	}
	progress(20)
	successor := startNode(t, l, 35000, zds.Workload{UID: "uid-cart", Name: "cart", Namespace: "shop", ServiceAccount: "cart"}, l.b)
	began := time.Now()
	l.zb.stop()
	progress(50)
	_ = held.SetReadDeadline(time.Now().Add(patience))
	if _, err := held.Read(make([]byte, 1)); isTimeout(err) {
		t.Error("the held connection lives on")
	}
	if cutAfter := time.Since(began); cutAfter < 1500*time.Millisecond {
		t.Errorf("the held connection was cut after %s, before the deadline", cutAfter)
	}
	<-l.zb.done
	progress(20)
	stopCalls()
	calls.Wait()
	for _, err := range failures {
		t.Errorf("a call failed: %v", err)
	}
	successor.log.take(t, "the successor", complete)
	l.zb.log.take(t, "the cut connection", func(e telemetry.Entry) bool { return strings.Contains(e.Error, errDrained.Error()) })
}
