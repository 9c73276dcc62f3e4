// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies/workload"
)

var update = flag.Bool("update", false, "rewrite golden files")

func addr(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

// callOf is a call that went well if it was seen by somebody.
func callOf(start time.Time, local, remote, seenBy, seenFrom, seenAt string) workload.Call {
	c := workload.Call{Start: start, Latency: 3 * time.Millisecond, LocalAddr: addr(local), RemoteAddr: addr(remote)}
	if seenBy == "" {
		c.Class, c.Error = workload.ClassReset, "read: connection reset by peer"
		return c
	}
	ns, name, _ := strings.Cut(seenBy, "/")
	c.OK, c.Status = true, 200
	c.Seen = &workload.Seen{
		RemoteAddr: addr(seenFrom), LocalAddr: addr(seenAt), Protocol: "http", Workload: name, Namespace: ns,
		Proto: "HTTP/1.1", Method: "GET", Path: "/", Host: "cart",
	}
	return c
}

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	webID   = "spiffe://cluster.local/ns/shop/sa/web"
	cartID  = "spiffe://cluster.local/ns/shop/sa/cart"
)

func mtls(more map[string]any) map[string]any {
	m := map[string]any{"trace_id": traceID, "src.identity": webID, "dst.identity": cartID, "dst.service": "cart.shop.svc.cluster.local"}
	for k, v := range more {
		m[k] = v
	}
	return m
}

type traceCase struct {
	name, from string
	url        string // "" is http://cart
	call       workload.Call
	logs       map[string]string
	missing    int
	hops       int
}

func traceCases(start time.Time) []traceCase {
	end := start.Add(3 * time.Millisecond)
	const web, batch = "10.244.0.5:40000", "10.244.0.20:40000"
	hbone := map[string]any{"dst.hbone_addr": "10.244.1.9:8080"}
	outHBONE := record(end, "connection complete", "outbound", web, "10.244.1.9:15008", mtls(map[string]any{
		"dst.hbone_addr": "10.244.1.9:8080", "upstream.local_addr": "10.244.0.5:50000",
	}))
	return []traceCase{
		{
			name: "hbone", from: "shop/web", hops: 4,
			call: callOf(start, web, "10.96.0.18:80", "shop/cart", "10.244.0.5:41000", "10.244.1.9:8080"),
			logs: map[string]string{
				"node1": record(start.Add(-time.Hour), "connection complete", "outbound", web, "10.244.1.9:15008", hbone) + outHBONE,
				"node2": record(end, "connection opened", "inbound", "10.244.0.5:50000", "10.244.1.9:15008", mtls(hbone)) +
					record(end, "connection complete", "inbound", "10.244.0.5:50000", "10.244.1.9:15008", mtls(map[string]any{
						"dst.hbone_addr": "10.244.1.9:8080", "upstream.local_addr": "10.244.0.5:41000",
					})),
			},
		},
		{
			name: "denied", from: "shop/web", hops: 3,
			call: callOf(start, web, "10.96.0.18:80", "", "", ""),
			logs: map[string]string{
				"node1": record(end, "connection failed", "outbound", web, "10.244.1.9:15008", mtls(map[string]any{
					"dst.hbone_addr": "10.244.1.9:8080", "error": "the peer answered 401", "response_flags": "DENY",
				})),
				"node2": record(end, "connection failed", "inbound", "10.244.0.5:50000", "10.244.1.9:15008", mtls(map[string]any{
					"dst.hbone_addr": "10.244.1.9:8080", "error": "denied by policy shop/none", "response_flags": "DENY", "policy": "shop/none",
				})),
			},
		},
		{
			name: "no-proxy-answers", from: "shop/web", hops: 2,
			call: callOf(start, web, "10.96.0.18:80", "", "", ""),
			logs: map[string]string{"node1": record(end, "connection failed", "outbound", web, "10.244.1.9:15008", map[string]any{
				"trace_id": traceID, "dst.hbone_addr": "10.244.1.9:8080", "error": "connect: refused", "response_flags": "CONNECT",
			})},
		},
		{
			name: "captured-to-plain", from: "shop/web", hops: 3,
			call: callOf(start, web, "10.244.1.20:8080", "plain/legacy", "10.244.0.5:50001", "10.244.1.20:8080"),
			logs: map[string]string{"node1": record(end, "connection complete", "outbound", web, "10.244.1.20:8080", map[string]any{
				"upstream.local_addr": "10.244.0.5:50001",
			})},
		},
		{
			name: "plain-to-captured", from: "plain/batch", hops: 3,
			call: callOf(start, batch, "10.96.0.18:80", "shop/cart", "10.244.0.20:41001", "10.244.1.9:8080"),
			logs: map[string]string{"node2": record(end, "connection complete", "inbound", batch, "10.244.1.9:8080", map[string]any{
				"upstream.local_addr": "10.244.0.20:41001",
			})},
		},
		{
			name: "plain-to-plain", from: "plain/batch", hops: 2,
			call: callOf(start, batch, "10.96.0.19:80", "plain/legacy", batch, "10.244.1.20:8080"),
		},
		{
			name: "own-address", from: "shop/web", hops: 2,
			call: callOf(start, web, "10.244.0.5:8080", "shop/web", web, "10.244.0.5:8080"),
		},
		{
			name: "outbound-missing", from: "shop/web", hops: 2, missing: 1,
			call: callOf(start, web, "10.244.1.9:8080", "shop/cart", web, "10.244.1.9:8080"),
		},
		{
			name: "no-such-name", from: "shop/web", hops: 1,
			call: workload.Call{Start: start, Latency: time.Millisecond, Class: workload.ClassResolve, Error: "lookup nosuch: no such host"},
		},
		{
			name: "refused", from: "shop/web", hops: 1,
			call: callOf(start, "", "10.244.1.9:1", "", "", ""),
		},
		{
			name: "udp", from: "shop/web", hops: 2, url: "udp://cart:9002",
			call: callOf(start, web, "10.96.0.18:9002", "shop/cart", web, "[::]:9002"),
		},
		{
			name: "loopback", from: "shop/web", hops: 2, url: "http://localhost:8080",
			call: callOf(start, "127.0.0.1:40000", "127.0.0.1:8080", "shop/web", "127.0.0.1:40000", "127.0.0.1:8080"),
		},
		{name: "inbound-missing", from: "shop/web", hops: 3, missing: 1,
			call: callOf(start, web, "10.96.0.18:80", "shop/cart", "10.244.0.5:41000", "10.244.1.9:8080"),
			logs: map[string]string{"node1": outHBONE},
		},
	}
}

func TestTrace(t *testing.T) {
	for _, tt := range traceCases(time.Now().Add(time.Minute).Truncate(time.Second)) { // logs of the past do not count
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l, f := newFake(t)
			f.calls(tt.call)
			for node, lines := range tt.logs {
				f.log(node, lines)
			}
			ref, err := ParsePodRef(tt.from)
			if err != nil {
				t.Fatal(err)
			}
			tr, err := l.Trace(t.Context(), ref, cmp.Or(tt.url, "http://cart"), workload.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(tr.Missing) != tt.missing || len(tr.Hops) != tt.hops {
				t.Errorf("%d hops, missing %q; want %d and %d", len(tr.Hops), tr.Missing, tt.hops, tt.missing)
			}
			var b strings.Builder
			if err := tr.Draw(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/"+tt.name+".txt", b.String())
			data, err := json.Marshal(tr)
			if err != nil {
				t.Fatal(err)
			}
			var back Trace
			if err := json.Unmarshal(data, &back); err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(fmt.Sprintf("%+v", tr.Legs), fmt.Sprintf("%+v", back.Legs)); diff != "" {
				t.Errorf("legs after JSON (-want +got):\n%s", diff)
			}
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// A record that comes late, but in time, is waited for.
func TestTraceWaits(t *testing.T) {
	l, f := newFake(t)
	tt := traceCases(time.Now().Add(time.Minute))[3]
	f.calls(tt.call)
	timer := time.AfterFunc(100*time.Millisecond, func() { f.log("node1", tt.logs["node1"]) })
	defer timer.Stop()
	tr, err := l.Trace(t.Context(), PodRef{"shop", "web"}, "http://cart", workload.Options{})
	if err != nil || len(tr.Missing) != 0 || len(tr.Hops) != 3 {
		t.Errorf("%+v, %v", tr, err)
	}
}

func TestReadAccessLog(t *testing.T) {
	at := time.Now()
	log := "text line\n" + `{"scope":"xds","message":"access granted"}` + "\n" +
		record(at.Add(-time.Second), "connection complete", "inbound", "10.0.0.1:1", "10.0.0.2:2", nil) +
		record(at, "connection complete", "inbound", "10.0.0.3:1", "10.0.0.2:2", nil)
	if !older([]byte(`{"time":"2026-08-01T12:00:00.5Z"}`), []byte("2026-08-01T12:00:01")) || older([]byte(`{"scope":"access"}`), []byte("2026-08-01T12:00:01")) {
		t.Error("older is wrong")
	}
	entries, err := readAccessLog(strings.NewReader(log), at)
	if err != nil || len(entries) != 1 || entries[0].Record.Src.Addr.String() != "10.0.0.3:1" {
		t.Errorf("%+v, %v", entries, err)
	}
	if _, err := readAccessLog(strings.NewReader(`{"scope":"access","schema":99}`), at); err == nil {
		t.Error("a schema of the future was read")
	}
}
