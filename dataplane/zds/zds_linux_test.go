// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/zds/zdsapi"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// recorder is a Handler that writes down its calls.
type recorder struct {
	events chan string
	fail   map[string]error // by uid, for Add

	mu     sync.Mutex
	inodes map[string]uint64
}

func newRecorder() *recorder {
	return &recorder{events: make(chan string, 100), inodes: map[string]uint64{}, fail: map[string]error{}}
}

func (r *recorder) Add(_ context.Context, w Workload, ns *netns.NS) error {
	defer ns.Close()
	r.mu.Lock()
	r.inodes[w.UID] = ns.Inode()
	err := r.fail[w.UID]
	r.mu.Unlock()
	r.events <- strings.Join([]string{"add", w.UID, w.Namespace, w.Name, w.ServiceAccount}, " ")
	return err
}
func (r *recorder) Keep(uid string) error { r.events <- "keep " + uid; return nil }
func (r *recorder) Del(uid string) error  { r.events <- "del " + uid; return nil }
func (r *recorder) SnapshotSent() error   { r.events <- "snapshot"; return nil }
func (r *recorder) Disconnected()         { r.events <- "disconnected" }

func (r *recorder) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-r.events:
			if got != w {
				t.Fatalf("got %q, want %q", got, w)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no %q", w)
		}
	}
}

func current(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// background runs f until the test ends or the returned function is called, which waits for it.
func background(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func newPair(t *testing.T, entries ...Entry) (*Server, *recorder) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "z", "ztunnel.sock")
	s := NewServer(ServerConfig{Path: path, Snapshot: func() []Entry { return entries }, Log: quiet})
	background(t, s.Run)
	r := newRecorder()
	background(t, NewClient(ClientConfig{Path: path, Handler: r, Log: quiet}).Run)
	return s, r
}

func TestSnapshotThenChanges(t *testing.T) {
	ns := current(t)
	s, r := newPair(t,
		Entry{Workload{"u1", "web", "shop", "web"}, ns},
		Entry{Workload: Workload{UID: "u2"}})
	r.expect(t, "add u1 shop web web", "keep u2", "snapshot")
	if err := s.Add(t.Context(), Workload{"u3", "cart", "shop", "default"}, ns); err != nil {
		t.Fatal(err)
	}
	if err := s.Del(t.Context(), "u1"); err != nil {
		t.Fatal(err)
	}
	r.expect(t, "add u3 shop cart default", "del u1")
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(map[string]uint64{"u1": ns.Inode(), "u3": ns.Inode()}, r.inodes); diff != "" {
		t.Error(diff)
	}
}

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestNamespaceTravelsBetweenOrdinaryUsers(t *testing.T) {
	nstest.AsOrdinaryUser(t, "TestNamespaceOfAPodTravels")
}

func TestNamespaceOfAPodTravels(t *testing.T) {
	ns := nstest.New(t)
	if ns.Same(current(t)) {
		t.Fatal("not a new namespace")
	}
	s, r := newPair(t)
	r.expect(t, "snapshot")
	if err := s.Add(t.Context(), Workload{UID: "u"}, ns); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inodes["u"] != ns.Inode() {
		t.Errorf("arrived as %d, sent as %d", r.inodes["u"], ns.Inode())
	}
}

func TestErrorsOfTheHandlerReachTheAgent(t *testing.T) {
	ns := current(t)
	s, r := newPair(t)
	r.expect(t, "snapshot")
	fail := map[string]error{"short": errors.New("port 15008 is taken"), "long": errors.New(strings.Repeat("é", 3000))}
	r.mu.Lock()
	r.fail = fail
	r.mu.Unlock()
	for _, uid := range []string{"short", "long"} {
		err := s.Add(t.Context(), Workload{UID: uid}, ns)
		if want := fail[uid].Error()[:18]; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	if err := s.Add(t.Context(), Workload{UID: "fine"}, ns); err != nil {
		t.Error("after errors:", err)
	}
	if err := s.Add(t.Context(), Workload{UID: "u", Name: strings.Repeat("x", 2000)}, ns); !errors.Is(err, errTooLong) {
		t.Errorf("error %v, want %v", err, errTooLong)
	}
	if err := s.Add(t.Context(), Workload{UID: "fine"}, ns); err != nil {
		t.Error("after a message that was too long:", err)
	}
}

func TestAddNeedsAZtunnel(t *testing.T) {
	s := NewServer(ServerConfig{Path: filepath.Join(t.TempDir(), "s"), Snapshot: func() []Entry { return nil }, Log: quiet})
	if err := s.Add(t.Context(), Workload{UID: "u"}, current(t)); !errors.Is(err, ErrNoZtunnel) {
		t.Errorf("error %v, want %v", err, ErrNoZtunnel)
	}
	if err := s.Del(t.Context(), "u"); err != nil {
		t.Error("nothing to delete from:", err)
	}
}

func TestNewestZtunnelGetsAddsAndBothGetDels(t *testing.T) {
	ns := current(t)
	s, older := newPair(t)
	older.expect(t, "snapshot")
	newer := newRecorder()
	stop := background(t, NewClient(ClientConfig{Path: s.cfg.Path, Handler: newer, Log: quiet}).Run)
	newer.expect(t, "snapshot")
	if s.Connected() != 2 {
		t.Errorf("%d connected", s.Connected())
	}
	if err := s.Add(t.Context(), Workload{UID: "u"}, ns); err != nil {
		t.Fatal(err)
	}
	if err := s.Del(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
	newer.expect(t, "add u   ", "del u")
	older.expect(t, "del u")
	stop()
	waitFor(t, func() bool { return s.Connected() == 1 })
	if err := s.Add(t.Context(), Workload{UID: "v"}, ns); err != nil {
		t.Fatal(err)
	}
	older.expect(t, "add v   ")
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatal("waited in vain")
		case <-tick.C:
		}
	}
}

func TestZtunnelReconnectsToANewAgent(t *testing.T) {
	ns := current(t)
	path := filepath.Join(t.TempDir(), "ztunnel.sock")
	entries := []Entry{{Workload{UID: "u1"}, ns}}
	r := newRecorder()
	background(t, NewClient(ClientConfig{Path: path, Handler: r, Log: quiet}).Run) // before there is an agent
	config := ServerConfig{Path: path, Snapshot: func() []Entry { return entries }, Log: quiet}
	stop := background(t, NewServer(config).Run)
	r.expect(t, "add u1   ", "snapshot")
	stop()
	r.expect(t, "disconnected")
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the agent left its socket:", err)
	}
	entries = []Entry{{Workload: Workload{UID: "u1"}}, {Workload{UID: "u2"}, ns}}
	background(t, NewServer(config).Run)
	r.expect(t, "keep u1", "add u2   ", "snapshot")
}

func TestSocketOfAnEarlierAgent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ztunnel.sock")
	stale, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	s := NewServer(ServerConfig{Path: path, Mode: 0o660, Snapshot: func() []Entry { return nil }, Log: quiet})
	stop := background(t, s.Run)
	r := newRecorder()
	background(t, NewClient(ClientConfig{Path: path, Handler: r, Log: quiet}).Run)
	r.expect(t, "snapshot")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", info, err)
	}
	// A later agent takes the name over; the earlier one must not take it away.
	later := NewServer(ServerConfig{Path: path, Snapshot: func() []Entry { return nil }, Log: quiet})
	background(t, later.Run)
	waitFor(t, func() bool { info, err := os.Stat(path); return err == nil && info.Mode().Perm() == 0o600 })
	stop()
	r.expect(t, "disconnected", "snapshot")
	if later.Connected() != 1 {
		t.Error("not connected to the later agent")
	}
}

func TestPlacesWhereNoSocketCanBe(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                                 "not a socket",
		filepath.Join(file, "under"):         "not a directory",
		dir + "/" + strings.Repeat("x", 120): "at most 107 bytes",
	} {
		err := NewServer(ServerConfig{Path: path, Log: quiet}).Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", path, err, want)
		}
	}
}

// agent speaks the agent's part by hand.
type agent struct {
	t *testing.T
	c *net.UnixConn
}

func (a agent) send(m proto.Message, fds ...int) {
	a.t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		a.t.Fatal(err)
	}
	a.raw(b, fds...)
}

func (a agent) raw(b []byte, fds ...int) {
	a.t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := a.c.WriteMsgUnix(b, oob, nil); err != nil {
		a.t.Fatal(err)
	}
}

// ack is the next acknowledgement's error; closed says that there is none.
func (a agent) ack() (text string, closed bool) {
	a.t.Helper()
	a.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var rsp zdsapi.WorkloadResponse
	if _, err := receive(a.c, &rsp); errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return "", true
	} else if err != nil {
		a.t.Fatal(err)
	}
	return rsp.GetAck().GetError(), false
}

// listenAsAgent lets a client connect and returns its conversations, past the hello.
func listenAsAgent(t *testing.T, r *recorder) func() agent {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ztunnel.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	background(t, NewClient(ClientConfig{Path: path, Handler: r, Log: quiet, BackoffMax: 10 * time.Millisecond}).Run)
	return func() agent {
		t.Helper()
		c, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		var hello zdsapi.ZdsHello
		if _, err := receive(c, &hello); err != nil || hello.GetVersion() != zdsapi.Version_V1 {
			t.Fatalf("hello %v, %v", &hello, err)
		}
		return agent{t, c}
	}
}

var (
	keepRequest     = &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Keep{Keep: &zdsapi.KeepWorkload{Uid: "u"}}}
	delRequest      = &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Del{Del: &zdsapi.DelWorkload{Uid: "u"}}}
	snapshotRequest = &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_SnapshotSent{SnapshotSent: &zdsapi.SnapshotSent{}}}
)

func TestClientEndsAConversationThatBreaksTheRules(t *testing.T) {
	fd := current(t).Fd()
	long := addRequest(Workload{UID: "u", Name: strings.Repeat("x", 2000)})
	r := newRecorder()
	next := listenAsAgent(t, r)
	for _, tc := range []struct {
		name string
		do   func(a agent)
	}{
		{"add without descriptor", func(a agent) { a.send(addRequest(Workload{UID: "u"})) }},
		{"add with two", func(a agent) { a.send(addRequest(Workload{UID: "u"}), fd, fd) }},
		{"add with very many", func(a agent) { a.send(addRequest(Workload{UID: "u"}), many(fd, 60)...) }},
		{"keep with a descriptor", func(a agent) { a.send(keepRequest, fd) }},
		{"del with a descriptor", func(a agent) { a.send(delRequest, fd) }},
		{"snapshot with a descriptor", func(a agent) { a.send(snapshotRequest, fd) }},
		{"no request", func(a agent) { a.raw([]byte{0x32, 0}) }},
		{"no protobuf", func(a agent) { a.raw([]byte{0xff}) }},
		{"too long", func(a agent) { a.send(long, fd) }},
		{"keep after the snapshot", func(a agent) { a.send(snapshotRequest); a.ack(); a.send(keepRequest) }},
		{"a second snapshot", func(a agent) { a.send(snapshotRequest); a.ack(); a.send(snapshotRequest) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := next()
			a.t = t
			tc.do(a)
			if text, closed := a.ack(); !closed {
				t.Fatalf("acknowledged with %q", text)
			}
			for got := ""; got != "disconnected"; {
				got = <-r.events
				if strings.HasPrefix(got, "add") {
					t.Errorf("the handler was told to %s", got)
				}
			}
		})
	}
	// It has come back each time, and works.
	a := next()
	a.send(delRequest)
	a.send(snapshotRequest)
	for range 2 {
		if text, closed := a.ack(); text != "" || closed {
			t.Errorf("acknowledged with %q, closed %v", text, closed)
		}
	}
	r.expect(t, "del u", "snapshot")
}

func many(fd, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = fd
	}
	return out
}

func TestClientRefusesABadPodAlone(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ns := current(t)
	r := newRecorder()
	a := listenAsAgent(t, r)()
	a.send(addRequest(Workload{UID: "u"}), int(file.Fd()))
	if text, closed := a.ack(); text == "" || closed {
		t.Errorf("a descriptor that is no namespace: %q, closed %v", text, closed)
	}
	a.send(addRequest(Workload{}), ns.Fd())
	if text, closed := a.ack(); text == "" || closed {
		t.Errorf("no uid: %q, closed %v", text, closed)
	}
	a.send(addRequest(Workload{UID: "u", Name: "web"}), ns.Fd())
	if text, closed := a.ack(); text != "" || closed {
		t.Errorf("a good one: %q, closed %v", text, closed)
	}
	r.expect(t, "add u  web ")
}

// dialAsZtunnel connects to a server by hand, without a hello.
func dialAsZtunnel(t *testing.T, s *Server) agent {
	t.Helper()
	var c *net.UnixConn
	waitFor(t, func() bool {
		var err error
		c, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: s.cfg.Path, Net: "unixpacket"})
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	return agent{t, c}
}

func (a agent) request() *zdsapi.WorkloadRequest {
	a.t.Helper()
	a.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var req zdsapi.WorkloadRequest
	fds, err := receive(a.c, &req)
	if err != nil {
		a.t.Fatal(err)
	}
	closeAll(fds)
	return &req
}

func (a agent) hungUp() bool {
	a.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var m zdsapi.WorkloadRequest
	_, err := receive(a.c, &m)
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)
}

func TestServerHangsUpOnBadManners(t *testing.T) {
	fd := current(t).Fd()
	hello := &zdsapi.ZdsHello{Version: zdsapi.Version_V1}
	ack := acknowledge(nil)
	for _, tc := range []struct {
		name string
		do   func(a agent)
	}{
		{"no hello", func(agent) {}},
		{"unknown version", func(a agent) { a.send(&zdsapi.ZdsHello{Version: 7}) }},
		{"hello with a descriptor", func(a agent) { a.send(hello, fd) }},
		{"no protobuf", func(a agent) { a.raw([]byte{0xff}) }},
		{"no acknowledgement", func(a agent) { a.send(hello); a.request() }},
		{"an acknowledgement of nothing", func(a agent) { a.send(hello); a.request(); a.send(ack); a.send(ack) }},
		{"an answer of no kind", func(a agent) { a.send(hello); a.request(); a.raw([]byte{0x32, 0}) }},
		{"an acknowledgement with a descriptor", func(a agent) { a.send(hello); a.request(); a.send(ack, fd) }},
		{"a very long one", func(a agent) { a.send(hello); a.request(); a.raw(make([]byte, 2000)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := NewServer(ServerConfig{
				Path: filepath.Join(t.TempDir(), "s"), Snapshot: func() []Entry { return nil }, Log: quiet,
				MessageTimeout: 200 * time.Millisecond,
			})
			background(t, s.Run)
			a := dialAsZtunnel(t, s)
			tc.do(a)
			if !a.hungUp() {
				t.Error("the agent stayed")
			}
			waitFor(t, func() bool { return s.Connected() == 0 })
		})
	}
}

func TestAddFailsWithItsZtunnel(t *testing.T) {
	ns := current(t)
	s := NewServer(ServerConfig{Path: filepath.Join(t.TempDir(), "s"), Snapshot: func() []Entry { return nil }, Log: quiet})
	background(t, s.Run)
	a := dialAsZtunnel(t, s)
	a.send(&zdsapi.ZdsHello{Version: zdsapi.Version_V1})
	a.request()
	a.send(acknowledge(nil))
	got := make(chan error, 1)
	go func() { got <- s.Add(context.Background(), Workload{UID: "u"}, ns) }()
	a.request()
	deleted := make(chan error, 1)
	go func() { deleted <- s.Del(context.Background(), "u") }() // waits behind the add
	a.c.Close()
	if err := <-got; !errors.Is(err, errGone) {
		t.Errorf("add: %v, want %v", err, errGone)
	}
	if err := <-deleted; err != nil {
		t.Errorf("del: %v", err)
	}
	waitFor(t, func() bool { return s.Connected() == 0 })
}

func TestWaitingForAnAnswerEndsWithTheCaller(t *testing.T) {
	ns := current(t)
	s := NewServer(ServerConfig{Path: filepath.Join(t.TempDir(), "s"), Snapshot: func() []Entry { return nil }, Log: quiet})
	stop := background(t, s.Run)
	a := dialAsZtunnel(t, s)
	a.send(&zdsapi.ZdsHello{Version: zdsapi.Version_V1})
	a.request() // never acknowledged
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() { got <- s.Add(ctx, Workload{UID: "u"}, ns) }()
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	stop()
	if !a.hungUp() {
		t.Error("the agent stayed")
	}
}

func TestServerLimitsNewConnections(t *testing.T) {
	s := NewServer(ServerConfig{Path: filepath.Join(t.TempDir(), "s"), Snapshot: func() []Entry { return nil }, Log: quiet})
	background(t, s.Run)
	start := time.Now()
	for range 6 {
		a := dialAsZtunnel(t, s)
		a.send(&zdsapi.ZdsHello{Version: zdsapi.Version_V1})
		a.request()
		a.send(acknowledge(nil))
	}
	if d := time.Since(start); d < 900*time.Millisecond {
		t.Errorf("six connections within %v", d)
	}
}
