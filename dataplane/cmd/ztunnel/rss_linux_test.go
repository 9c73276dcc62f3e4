// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

const meshDocument = `
workloads:
- {uid: Kubernetes//Pod/shop/web, name: web, namespace: shop, serviceAccount: web, workloadIps: ["10.77.0.2"], protocol: HBONE}
- {uid: Kubernetes//Pod/shop/cart, name: cart, namespace: shop, serviceAccount: cart, workloadIps: ["10.77.0.3"], protocol: HBONE}
`

var cartAddr = netip.MustParseAddr("10.77.0.3")

// daemon is the real binary, in a namespace of its own, with an agent that serves it pods.
type daemon struct {
	cmd            *exec.Cmd
	own            *netns.NS
	agent          *zds.Server
	stdout, stderr buffer
	wait           func() error // ends the daemon if it has not ended, and is its outcome
}

// buffer is what a process has written so far.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// startDaemon builds the binary and starts it as an operator without a cluster would.
func startDaemon(t testing.TB, environ ...string) *daemon {
	t.Helper()
	nstest.Require(t)
	dir := t.TempDir()
	document, socket := filepath.Join(dir, "xds.yaml"), filepath.Join(dir, "z.sock")
	if err := os.WriteFile(document, []byte(meshDocument), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &daemon{own: nstest.New(t), cmd: exec.Command(build(t))}
	d.agent = zds.NewServer(zds.ServerConfig{Path: socket, Snapshot: func() []zds.Entry { return nil }, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.agent.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	d.cmd.Env = append(slices.Clone(environ), "LOCAL_XDS_PATH="+document, "FAKE_CA=true", "INPOD_UDS="+socket, "NODE_NAME=node")
	d.cmd.Stdout, d.cmd.Stderr = &d.stdout, &d.stderr
	nstest.In(t, d.own, d.cmd.Start)
	d.wait = sync.OnceValue(func() error {
		timer := time.AfterFunc(10*time.Second, func() { _ = d.cmd.Process.Kill() })
		defer timer.Stop()
		return d.cmd.Wait()
	})
	t.Cleanup(func() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		if err := d.wait(); err != nil {
			t.Errorf("ztunnel: %v\n%s", err, d.stderr.String())
		}
	})
	eventually(t, "ztunnel is ready", func() bool { return d.get("15021", "/healthz/ready") == "ready\n" })
	return d
}

// client speaks to the daemon in its namespace.
func (d *daemon) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return d.own.DialTCP(ctx, netip.MustParseAddrPort(addr), netns.SocketOptions{})
	}}}
}

// get fetches a page of the daemon; "" if there is none.
func (d *daemon) get(port, path string) string {
	rsp, err := d.client().Get("http://127.0.0.1:" + port + path)
	if err != nil {
		return ""
	}
	defer rsp.Body.Close()
	body, err := io.ReadAll(rsp.Body)
	if err != nil {
		return ""
	}
	return string(body)
}

// rssMB is the daemon's resident memory, all of it: heap, stacks and the pages of the binary.
func (d *daemon) rssMB(t testing.TB, field string) float64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb / 1000
		}
	}
	t.Fatalf("no %s in /proc/.../status", field)
	return 0
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// enrol captures a pod and has the daemon serve it.
func (d *daemon) enrol(t testing.TB, name string, ns *netns.NS) {
	t.Helper()
	if _, err := capture.Apply(t.Context(), ns, capture.NewPlan(capture.Options{IPv4: true, IPv6: true})); err != nil {
		t.Fatal(err)
	}
	w := zds.Workload{UID: "uid-" + name, Name: name, Namespace: "shop", ServiceAccount: name}
	if err := d.agent.Add(t.Context(), w, ns); err != nil {
		t.Fatal(err)
	}
}

// settle is longer than the daemon waits before it gives memory back.
const settle = 6 * time.Second

// settled is the daemon's memory once it has its certificate and has been left alone for a while.
func (d *daemon) settled(t testing.TB) float64 {
	t.Helper()
	eventually(t, "the certificate is there", func() bool { return strings.Contains(d.get("15000", "/config_dump"), `"state": "Available"`) })
	<-time.After(settle)
	return d.rssMB(t, "VmRSS")
}

// BenchmarkIdleRSS prints the resident memory of the real binary: idle with one pod, and after 100 000 requests between
// two, of which it carries both sides.
func BenchmarkIdleRSS(b *testing.B) {
	web, cart := nstest.New(b), nstest.New(b)
	nstest.Connect(b, nstest.End{NS: web, Name: "eth0", Addresses: []string{"10.77.0.2/24"}}, nstest.End{NS: cart, Name: "eth0", Addresses: []string{"10.77.0.3/24"}})
	d := startDaemon(b)
	d.enrol(b, "web", web)
	idle := d.settled(b)
	anon := d.rssMB(b, "RssAnon")
	d.enrol(b, "cart", cart)
	pingPong(b, web, cart, 64, 100_000)
	peak := d.rssMB(b, "VmHWM")
	after := d.settled(b)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(idle, "rss-MB")
	b.ReportMetric(anon, "rss-anon-MB")
	b.ReportMetric(peak, "rss-peak-MB")
	b.ReportMetric(after, "rss-after-100k-MB")
	b.ReportMetric(d.rssMB(b, "RssAnon"), "rss-anon-after-100k-MB")
}

// pingPong makes requests of 1 KiB, each answered with its own bytes, over connections at once.
func pingPong(b testing.TB, from, to *netns.NS, connections, requests int) {
	b.Helper()
	l, err := to.ListenTCP(b.Context(), netip.AddrPortFrom(cartAddr, 8080), netns.SocketOptions{})
	if err != nil {
		b.Fatal(err)
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer l.Close()
	group.Go(func() { serveAll(l, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }) })
	var clients sync.WaitGroup
	for range connections {
		clients.Go(func() {
			c, err := from.DialTCP(b.Context(), netip.AddrPortFrom(cartAddr, 8080), netns.SocketOptions{})
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			r, buf := bufio.NewReader(c), make([]byte, 1024)
			for range requests / connections {
				if _, err := c.Write(buf); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(r, buf); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
}

// serveAll serves every connection, until l is closed and the last of them has ended.
func serveAll(l *net.TCPListener, serve func(*net.TCPConn)) {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		conns.Go(func() {
			defer c.Close()
			serve(c)
		})
	}
}
