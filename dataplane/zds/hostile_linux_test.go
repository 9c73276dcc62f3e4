// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambientlab/ambientlab/dataplane/zds/zdsapi"
)

// hostileAgent is what an agent may send that no agent should: packets with descriptors.
func hostileAgent(fd, null int) map[string]func(a agent) {
	add := addRequest(Workload{UID: "u", Name: "n"})
	return map[string]func(a agent){
		"add without descriptor":       func(a agent) { a.send(add) },
		"add with two":                 func(a agent) { a.send(add, fd, fd) },
		"add with very many":           func(a agent) { a.send(add, many(fd, 200)...) },
		"add with no namespace":        func(a agent) { a.send(add, null) },
		"add of nothing":               func(a agent) { a.send(addRequest(Workload{}), fd) },
		"cut off":                      func(a agent) { b, _ := proto.Marshal(add); a.raw(b[:len(b)-1], fd) },
		"an unknown message":           func(a agent) { a.raw([]byte{0x32, 0}, fd) },
		"no protobuf":                  func(a agent) { a.raw([]byte{0xff, 0xff}, fd) },
		"nothing but a descriptor":     func(a agent) { a.raw(nil, fd) },
		"longer than a packet may be":  func(a agent) { a.raw(make([]byte, 64<<10), fd) },
		"a second snapshot":            func(a agent) { a.send(snapshotRequest); a.send(snapshotRequest, fd) },
		"del of what is not there":     func(a agent) { a.send(delRequest); a.send(delRequest, fd) },
		"a hundred keeps, then a Keep": func(a agent) { sendAll(a, 100, keepRequest); a.send(keepRequest, fd) },
		"silence":                      func(agent) {},
	}
}

func sendAll(a agent, n int, m proto.Message) {
	for range n {
		a.send(m)
	}
}

// held is what a process must not gather: descriptors, goroutines, bytes on the heap.
type held struct{ descriptors, goroutines, heap int }

func holds(t *testing.T) held {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	runtime.GC()
	runtime.GC() // what has a finalizer goes in the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return held{len(entries), runtime.NumGoroutine(), int(m.HeapAlloc)}
}

// expectNoMore waits until nothing is held that was not held before, but for a little heap.
func expectNoMore(t *testing.T, before held) {
	t.Helper()
	const slack = 512 << 10
	waitFor(t, func() bool {
		now := holds(t)
		return now.descriptors <= before.descriptors && now.goroutines <= before.goroutines && now.heap <= before.heap+slack
	})
}

func TestClientGathersNothingFromAHostileAgent(t *testing.T) {
	ns := current(t)
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	path := filepath.Join(t.TempDir(), "ztunnel.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	must(t, err)
	defer l.Close()
	r := newRecorder()
	r.events = make(chan string, 100_000)
	before := holds(t)
	stop := background(t, NewClient(ClientConfig{Path: path, Handler: r, Log: quiet, BackoffMin: time.Millisecond, BackoffMax: time.Millisecond}).Run)
	for name, attack := range hostileAgent(ns.Fd(), int(null.Fd())) {
		for range 10 {
			c, err := l.AcceptUnix()
			must(t, err)
			var hello zdsapi.ZdsHello
			if _, err := receive(c, &hello); err != nil {
				t.Fatalf("%s: no hello: %v", name, err)
			}
			attack(agent{t, c})
			c.Close()
		}
	}
	stop()
	expectNoMore(t, before)
}

func TestServerGathersNothingFromAHostileZtunnel(t *testing.T) {
	ns := current(t)
	fd := ns.Fd()
	hello := &zdsapi.ZdsHello{Version: zdsapi.Version_V1}
	ack := acknowledge(errors.New(strings.Repeat("x", 900)))
	before := holds(t)
	s := NewServer(ServerConfig{
		Path: filepath.Join(t.TempDir(), "s"), Log: quiet, AcceptsPerSecond: 100_000,
		Snapshot: func() []Entry { return []Entry{{Workload{UID: "u"}, ns}} },
	})
	stop := background(t, s.Run)
	for _, attack := range []func(a agent){
		func(agent) {},
		func(a agent) { a.send(&zdsapi.ZdsHello{Version: 7}) },
		func(a agent) { a.send(hello, many(fd, 200)...) },
		func(a agent) { a.raw(make([]byte, 64<<10), fd) },
		func(a agent) { a.send(hello); a.raw(make([]byte, 64<<10), fd) },
		func(a agent) { a.send(hello); a.request(); a.send(ack, fd, fd) },
		func(a agent) { a.send(hello); a.request(); a.raw([]byte{0x32, 0}) },
		func(a agent) { a.send(hello); a.request(); a.raw(nil, fd) },
		func(a agent) {
			a.send(hello)
			a.request()
			a.send(ack)
			a.request()
			a.send(ack)
			a.send(ack)
		},
	} {
		for range 10 {
			a := dialAsZtunnel(t, s)
			attack(a)
			a.c.Close()
		}
	}
	waitFor(t, func() bool { return s.Connected() == 0 })
	stop()
	expectNoMore(t, before)
}

func TestServerTakesFewProxies(t *testing.T) {
	s := NewServer(ServerConfig{Path: filepath.Join(t.TempDir(), "s"), Snapshot: func() []Entry { return nil }, Log: quiet, AcceptsPerSecond: 1000})
	background(t, s.Run)
	join := func() agent {
		a := dialAsZtunnel(t, s)
		a.send(&zdsapi.ZdsHello{Version: zdsapi.Version_V1})
		return a
	}
	var first agent
	for i := range maxConns {
		a := join()
		a.request()
		a.send(acknowledge(nil))
		if i == 0 {
			first = a
		}
	}
	if a := join(); !a.hungUp() || s.Connected() != maxConns {
		t.Errorf("one too many was taken: %d connected", s.Connected())
	}
	first.c.Close()
	waitFor(t, func() bool { return s.Connected() < maxConns })
	join().request() // the snapshot's end: it is taken
}
