// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
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
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), -update rewrites it:\n%s", name, diff)
	}
}

var (
	addrs = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	start = time.Date(2026, 8, 1, 12, 0, 0, 1234567, time.UTC)
)

func outbound() *Record {
	return &Record{
		Start: start, Time: start.Add(12345678 * time.Nanosecond), Direction: Outbound,
		Src: Peer{Addr: netip.MustParseAddrPort("10.0.0.1:40000"), Name: "web", Workload: "web", Namespace: "shop", Cluster: "Kubernetes",
			Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}, CanonicalName: "web", CanonicalRevision: "v1", Region: "r1", Zone: "z1"},
		Dst: Peer{Addr: netip.MustParseAddrPort("10.0.1.9:15008"), Name: "cart-0", Workload: "cart", Namespace: "shop", Cluster: "Kubernetes",
			Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"}, CanonicalName: "cart", CanonicalRevision: "v1"},
		HBONEAddr: netip.MustParseAddrPort("10.0.1.9:8080"),
		Service:   "cart.shop.svc.cluster.local", ServiceNamespace: "shop", ServiceName: "cart",
		Security: MutualTLS, BytesSent: 84, BytesRecv: 358, TraceID: "0af7651916cd43dd8448eb211c80319c", Upstream: netip.MustParseAddrPort("10.0.0.1:50000"),
	}
}

func plainInbound() *Record {
	r := &Record{Start: start, Time: start.Add(3 * time.Millisecond), Direction: Inbound, Flags: FlagDeny, Policy: "istio-system/strict",
		Src: Peer{Addr: netip.MustParseAddrPort("[fd00::1]:40000")}, Dst: outbound().Dst, Err: errors.New("denied: \"strict\"\n\x01")}
	r.Dst.Addr = netip.MustParseAddrPort("[fd00::9]:8080")
	return r
}

func TestAccessLogGolden(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			var b bytes.Buffer
			l := NewAccessLog(&b, format)
			l.SetLevel(slog.LevelDebug)
			l.Opened(outbound())
			l.Complete(outbound())
			failed := outbound()
			failed.Err = errors.New("connection reset")
			l.Complete(failed)
			l.Failed(plainInbound())
			l.Flush()
			golden(t, "access."+format, b.String())
		})
	}
}

func TestParseRecordReadsWhatIsLogged(t *testing.T) {
	var b bytes.Buffer
	l := NewAccessLog(&b, "json")
	l.Complete(outbound())
	l.Failed(plainInbound())
	l.Flush()
	lines := bytes.Split(bytes.TrimSpace(b.Bytes()), []byte("\n"))
	logged := cmp.Options{addrs, cmpopts.IgnoreUnexported(Record{}), cmpopts.IgnoreFields(Record{}, "Err", "ServiceNamespace", "ServiceName"),
		cmpopts.IgnoreFields(Peer{}, "Workload", "CanonicalName", "CanonicalRevision", "Region", "Zone")}

	e, err := ParseRecord(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	want := Entry{Message: MessageComplete, Level: "info", Schema: 1, Record: *outbound()}
	want.Record.Duration = 12345678 * time.Nanosecond
	if diff := cmp.Diff(want, e, logged); diff != "" {
		t.Errorf("complete (-want +got):\n%s", diff)
	}

	e, err = ParseRecord(lines[1])
	if err != nil {
		t.Fatal(err)
	}
	want = Entry{Message: MessageFailed, Level: "warn", Schema: 1, Error: "denied: \"strict\"\n\x01", Record: *plainInbound()}
	want.Record.Dst.Identity = mesh.Identity{}
	if diff := cmp.Diff(want, e, logged); diff != "" {
		t.Errorf("failed (-want +got):\n%s", diff)
	}
}

func TestParseRecordReadsUpstreams(t *testing.T) {
	e, err := ParseRecord([]byte(`{"level":"info","time":"2026-08-01T12:00:00.754291Z","scope":"access","message":"connection complete",` +
		`"src.addr":"10.42.0.9:33772","src.workload":"curl-1","src.namespace":"default","src.identity":"spiffe://cluster.local/ns/default/sa/curl",` +
		`"dst.addr":"10.42.0.5:15008","dst.hbone_addr":"details.default.svc.cluster.local:9080","dst.service":"details.default.svc.cluster.local","direction":"outbound",` +
		`"bytes_sent":84,"bytes_recv":358,"duration":"15ms"}`))
	if err != nil {
		t.Fatal(err)
	}
	if e.Schema != 0 || e.Record.Duration != 15*time.Millisecond || e.Record.Src.Identity.ServiceAccount != "curl" || e.Record.HBONEAddr.IsValid() {
		t.Errorf("%+v", e)
	}
}

func TestParseRecordRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, line string
		notAccess  bool
	}{
		{"another scope", `{"time":"x","scope":"proxy","message":"hello"}`, true},
		{"no scope", `{}`, true},
		{"no JSON", `hello`, false},
		{"bad address", `{"scope":"access","src.addr":"nowhere"}`, false},
		{"bad identity", `{"scope":"access","src.identity":"spiffe://x"}`, false},
		{"bad duration", `{"scope":"access","duration":"long"}`, false},
		{"newer schema", `{"scope":"access","schema":99}`, false},
	} {
		_, err := ParseRecord([]byte(tt.line))
		if err == nil || errors.Is(err, ErrNotAccess) != tt.notAccess {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestLevels(t *testing.T) {
	var b bytes.Buffer
	l := NewAccessLog(&b, "text")
	var level slog.LevelVar
	l.SetLevel(&level)
	l.Opened(outbound())
	if b.Len() > 0 {
		t.Errorf("at info: %s", b.String())
	}
	level.Set(slog.LevelError)
	l.Complete(outbound())
	l.Failed(plainInbound())
	if b.Len() > 0 {
		t.Errorf("at error: %s", b.String())
	}
	r := outbound()
	r.Err = io.ErrUnexpectedEOF
	l.Complete(r)
	if !strings.Contains(b.String(), "\terror\taccess\tconnection complete\t") {
		t.Errorf("an error at level error: %q", b.String())
	}
}

// wholeLines counts lines, and writes that are not of whole ones.
type wholeLines struct{ bad, lines, writes int }

func (w *wholeLines) Write(p []byte) (int, error) {
	w.writes++
	w.lines += bytes.Count(p, []byte("\n"))
	if !bytes.HasSuffix(p, []byte("\n")) {
		w.bad++
	}
	return len(p), nil
}

func TestConcurrentLines(t *testing.T) {
	var w wholeLines
	l := NewAccessLog(&w, "json")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l.Complete(outbound())
			}
		})
	}
	wg.Wait()
	l.Flush()
	if w.bad > 0 || w.lines != 800 {
		t.Errorf("%d lines, %d writes not of whole ones", w.lines, w.bad)
	}
}

// TestLinesTogether: a line that comes alone is written at once, those that come soon after one another together, and nothing waits
// for longer than that.
func TestLinesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wholeLines
		l := NewAccessLog(&w, "json")
		written := func(when string, lines, writes int) {
			t.Helper()
			synctest.Wait()
			l.mu.Lock()
			defer l.mu.Unlock()
			if w.lines != lines || w.writes != writes {
				t.Errorf("%s: %d lines in %d writes, want %d in %d", when, w.lines, w.writes, lines, writes)
			}
		}
		for n := range 3 {
			l.Complete(outbound())
			written("at once", n+1, n+1)
			time.Sleep(logTogether)
		}
		for range 3 {
			l.Complete(outbound())
		}
		written("a moment later", 4, 4)
		time.Sleep(logTogether)
		written("then", 6, 5)
		l.Complete(outbound())
		l.Flush()
		written("flushed", 7, 6)
		for w.writes == 6 {
			l.Complete(outbound())
		}
		if w.lines < logMost/1000 {
			t.Errorf("a burst: written after %d lines", w.lines)
		}
	})
}

func TestTrail(t *testing.T) {
	at := func(id string, s int) Entry {
		return Entry{Record: Record{TraceID: id, Start: start.Add(time.Duration(s))}}
	}
	got := Trail([]Entry{at("a", 2), at("b", 0), at("a", 1)}, "a")
	if len(got) != 2 || got[0].Record.Start.After(got[1].Record.Start) {
		t.Errorf("%+v", got)
	}
}

func FuzzParseRecord(f *testing.F) {
	var b bytes.Buffer
	l := NewAccessLog(&b, "json")
	l.Complete(outbound())
	l.Failed(plainInbound())
	l.Flush()
	for line := range bytes.Lines(b.Bytes()) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseRecord(line)
		if err != nil {
			return
		}
		if e.Error != "" {
			e.Record.Err = errors.New(e.Error)
		}
		var b bytes.Buffer
		NewAccessLog(&b, "json").Failed(&e.Record)
		again, err := ParseRecord(b.Bytes())
		if err != nil {
			t.Fatalf("%s: %v", b.Bytes(), err)
		}
		if again.Record.Src != e.Record.Src || again.Error != e.Error {
			t.Fatalf("%+v became %+v", e, again)
		}
	})
}

func BenchmarkAccessLog(b *testing.B) {
	for _, format := range []string{"text", "json"} {
		b.Run(format, func(b *testing.B) {
			l := NewAccessLog(io.Discard, format)
			r := outbound()
			b.ReportAllocs()
			for b.Loop() {
				l.Complete(r)
			}
		})
	}
}
