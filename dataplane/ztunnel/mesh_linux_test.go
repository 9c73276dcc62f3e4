// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the test root's warning, hundreds of times
	if slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz") }) {
		os.Exit(m.Run()) // workers are started by the binary's name, which nstest hides; no fuzz target needs a namespace
	}
	os.Exit(nstest.Main(m))
}

// patience bounds every wait of these tests; nothing normal comes near it.
const patience = 10 * time.Second

// The pods of the test mesh, all on one bridge: a and b are enrolled, x is a stranger.
var (
	addrA = family{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")}
	addrB = family{netip.MustParseAddr("10.77.0.3"), netip.MustParseAddr("fd77::3")}
	addrX = family{netip.MustParseAddr("10.77.0.4"), netip.MustParseAddr("fd77::4")}
	vipA  = family{netip.MustParseAddr("10.96.0.2"), netip.MustParseAddr("fd96::2")}
	vipB  = family{netip.MustParseAddr("10.96.0.3"), netip.MustParseAddr("fd96::3")}
)

type family struct{ v4, v6 netip.Addr }

func (f family) each(t *testing.T, run func(t *testing.T, pick func(family) netip.Addr)) {
	t.Run("ipv4", func(t *testing.T) { run(t, func(f family) netip.Addr { return f.v4 }) })
	t.Run("ipv6", func(t *testing.T) { run(t, func(f family) netip.Addr { return f.v6 }) })
}

const (
	identityA = "spiffe://cluster.local/ns/shop/sa/web"
	identityB = "spiffe://cluster.local/ns/shop/sa/cart"
)

// localXDS is the mesh as both ztunnels know it; policies are appended to it.
const localXDS = `
workloads:
- {uid: Kubernetes//Pod/shop/web, name: web, namespace: shop, serviceAccount: web, workloadName: web, canonicalName: web,
   workloadIps: ["10.77.0.2", "fd77::2"], protocol: HBONE, clusterId: Kubernetes,
   services: {shop/web.shop.svc.cluster.local: {80: 8080}}}
- {uid: Kubernetes//Pod/shop/cart, name: cart, namespace: shop, serviceAccount: cart, workloadName: cart, canonicalName: cart,
   workloadIps: ["10.77.0.3", "fd77::3"], protocol: HBONE, clusterId: Kubernetes,
   services: {shop/cart.shop.svc.cluster.local: {80: 8080}}}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.96.0.2, "/fd96::2"], ports: {80: 8080}}
- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.96.0.3, "/fd96::3"], ports: {80: 8080}}
`

// denyWeb refuses web on cart's port 8080.
const denyWeb = `
policies:
- {name: no-web, namespace: shop, scope: Namespace, action: Deny,
   rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/web}], destinationPorts: [8080]}]]]}
`

// lab is two nodes of one pod each, and a stranger.
type lab struct {
	a, b, x *netns.NS
	xds     string // path of the document
	za, zb  *node
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{a: nstest.New(t), b: nstest.New(t), x: nstest.New(t), xds: filepath.Join(t.TempDir(), "xds.yaml")}
	hub := nstest.New(t)
	nstest.In(t, hub, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		return netlink.LinkSetUp(br)
	})
	for i, pod := range []struct {
		ns   *netns.NS
		addr family
	}{{l.a, addrA}, {l.b, addrB}, {l.x, addrX}} {
		port := fmt.Sprintf("port%d", i)
		nstest.Connect(t, nstest.End{NS: hub, Name: port}, nstest.End{NS: pod.ns, Name: "eth0",
			Addresses: []string{pod.addr.v4.String() + "/24", pod.addr.v6.String() + "/64"}})
		nstest.In(t, hub, func() error {
			br, err := netlink.LinkByName("br0")
			if err != nil {
				return err
			}
			p, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(p, br)
		})
		nstest.In(t, pod.ns, defaultRoutes)
	}
	l.write(t, localXDS)
	return l
}

// defaultRoutes let a pod ask for a VIP; nobody answers for it but the proxy.
func defaultRoutes() error {
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		_, dst, err := net.ParseCIDR(all)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst}); err != nil {
			return err
		}
	}
	return nil
}

// write replaces the document in one step.
func (l *lab) write(t testing.TB, text string) {
	t.Helper()
	tmp := l.xds + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, l.xds); err != nil {
		t.Fatal(err)
	}
}

// enrol captures both pods and starts a ztunnel for each.
func (l *lab) enrol(t testing.TB) {
	t.Helper()
	for _, ns := range []*netns.NS{l.a, l.b} {
		if _, err := capture.Apply(t.Context(), ns, capture.NewPlan(capture.Options{IPv4: true, IPv6: true})); err != nil {
			t.Fatal(err)
		}
	}
	l.za = startNode(t, l, 15000, zds.Workload{UID: "uid-web", Name: "web", Namespace: "shop", ServiceAccount: "web"}, l.a)
	l.zb = startNode(t, l, 25000, zds.Workload{UID: "uid-cart", Name: "cart", Namespace: "shop", ServiceAccount: "cart"}, l.b)
}

// node is a ztunnel that runs in this process, and its agent.
type node struct {
	*Ztunnel
	agent *zds.Server
	log   *entries
	stop  context.CancelFunc // begins the drain
	done  chan struct{}
}

func startNode(t testing.TB, l *lab, adminPort int, w zds.Workload, ns *netns.NS) *node {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "z.sock")
	n := &node{log: new(entries), done: make(chan struct{})}
	n.agent = zds.NewServer(zds.ServerConfig{Path: socket, Snapshot: func() []zds.Entry {
		return []zds.Entry{{Workload: w, NS: ns}}
	}, Log: slog.New(slog.DiscardHandler)})
	level := new(slog.LevelVar)
	var err error
	n.Ztunnel, err = New(Config{
		Node: "node", ZDSPath: socket, Local: Local{Path: l.xds}, CA: CA{Fake: true}, IPv6: true, ReusePort: true,
		CRLPath:        filepath.Join(t.TempDir(), "crl"),
		PreserveSource: SourceKept, ResponseBaggage: true, Time: Timers{Drain: 2 * time.Second, LocalWorkload: time.Second, Connect: 2 * time.Second},
		Admin: fmt.Sprintf("127.0.0.1:%d", adminPort), Metrics: fmt.Sprintf("127.0.0.1:%d", adminPort+20), Readiness: fmt.Sprintf("127.0.0.1:%d", adminPort+21),
		AccessLog: n.log, AccessLogJSON: true, Level: level, Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		t.Fatal(err)
	}
	agentCtx, stopAgent := context.WithCancel(context.Background())
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	agentDone := make(chan error, 1)
	go func() { agentDone <- n.agent.Run(agentCtx) }()
	var runErr error
	go func() {
		defer close(n.done)
		runErr = n.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-n.done
		stopAgent()
		if err := <-agentDone; err != nil {
			t.Errorf("agent: %v", err)
		}
		if runErr != nil {
			t.Errorf("ztunnel: %v", runErr)
		}
	})
	eventually(t, "the ztunnel is ready", func() bool {
		select {
		case <-n.done:
			t.Fatalf("ztunnel ended: %v", runErr)
		default:
		}
		return len(n.readiness.Pending()) == 0
	})
	return n
}

// proxies calls f for each of n's proxies.
func (n *node) proxies(f func(*proxy)) {
	n.manager.list(func(_ zds.Workload, running pod, _ error) {
		if p, ok := running.(*proxy); ok {
			f(p)
		}
	})
}

// pooled counts the pooled connections.
func (n *node) pooled() (conns int) {
	n.proxies(func(p *proxy) { conns += len(p.pool.Conns()) })
	return conns
}

// inbound lists the live inbound connections.
func (n *node) inbound() (all []live) {
	n.proxies(func(p *proxy) {
		in, _ := p.tracker.list()
		all = append(all, in...)
	})
	return all
}

// scrape is the metrics as text.
func (n *node) scrape() string {
	rec := httptest.NewRecorder()
	n.metrics.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return rec.Body.String()
}

// sample is the metric line that begins with name and contains all of labels; "" if there is none.
func (n *node) sample(name string, labels ...string) string {
next:
	for line := range strings.SplitSeq(n.scrape(), "\n") {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(line, l) {
				continue next
			}
		}
		return line
	}
	return ""
}

// entries collects access log lines.
type entries struct {
	mu    sync.Mutex
	lines [][]byte
}

func (e *entries) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for line := range bytes.Lines(p) {
		e.lines = append(e.lines, bytes.Clone(line))
	}
	return len(p), nil
}

// take waits for an entry that is wanted and returns it; everything before it is forgotten.
func (e *entries) take(t testing.TB, what string, wanted func(telemetry.Entry) bool) telemetry.Entry {
	t.Helper()
	var found telemetry.Entry
	eventually(t, "an access log line of "+what, func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		for i, line := range e.lines {
			got, err := telemetry.ParseRecord(line)
			if err != nil {
				t.Fatalf("access log line %s: %v", line, err)
			}
			if wanted(got) {
				found, e.lines = got, e.lines[i+1:]
				return true
			}
		}
		return false
	})
	return found
}

func (e *entries) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return string(bytes.Join(e.lines, nil))
}

// count is how many lines there are, all kinds.
func (e *entries) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.lines)
}

func complete(e telemetry.Entry) bool { return e.Message == telemetry.MessageComplete }

// eventually polls cond.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// testWriter logs to the test; lines after its end are dropped.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSuffix(string(p), "\n"))
	}
	return len(p), nil
}

// app is a server in a pod: it answers each connection, once its client has half-closed, with the client's address, a
// newline and everything that it read.
func app(t testing.TB, ns *netns.NS, port uint16) {
	t.Helper()
	serve(t, ns, port, answer)
}

// serve runs a server in a pod until the test ends.
func serve(t testing.TB, ns *netns.NS, port uint16, one func(*net.TCPConn)) {
	t.Helper()
	l, err := ns.ListenTCP(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			conns.Go(func() { one(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
}

func answer(c *net.TCPConn) {
	defer c.Close()
	data, err := io.ReadAll(c)
	if err != nil {
		return
	}
	fmt.Fprintf(c, "%s\n%s", remoteOf(c).Addr(), data)
}

// call sends data from a pod to an app, half-closes and reads to the end: who the app saw, and what it echoed.
func call(ctx context.Context, ns *netns.NS, to netip.AddrPort, data string) (seen, echo string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := ns.DialTCP(ctx, to, netns.SocketOptions{})
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, data); err != nil {
		return "", "", err
	}
	if err := c.CloseWrite(); err != nil {
		return "", "", err
	}
	all, err := io.ReadAll(c)
	if err != nil {
		return "", "", err
	}
	seen, echo, ok := strings.Cut(string(all), "\n")
	if !ok {
		return "", "", fmt.Errorf("the connection ended without an answer: %q", all)
	}
	return seen, echo, nil
}
