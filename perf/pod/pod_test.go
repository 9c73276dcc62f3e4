// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// process runs a role as command perfpod would.
type process struct {
	t   *testing.T
	enc *json.Encoder
	dec *json.Decoder
}

func start(t *testing.T, role func(ctx context.Context, in io.Reader, out io.Writer) error) *process {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := role(t.Context(), inR, outW)
		outW.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		inW.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	p := &process{t: t, enc: json.NewEncoder(inW), dec: json.NewDecoder(outR)}
	p.reply()
	return p
}

func (p *process) reply() Reply {
	p.t.Helper()
	var r Reply
	if err := p.dec.Decode(&r); err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *process) ask(r Request) Reply {
	p.t.Helper()
	if err := p.enc.Encode(r); err != nil {
		p.t.Fatal(err)
	}
	return p.reply()
}

func serve(t *testing.T, p Ports) {
	start(t, func(ctx context.Context, in io.Reader, out io.Writer) error { return Serve(ctx, p, in, out) })
}

func relay(t *testing.T, kind string, p Ports, targets []string) {
	start(t, func(ctx context.Context, in io.Reader, out io.Writer) error {
		return Relay(ctx, kind, p, targets, in, out)
	})
}

// TestLoads makes every kind of load over every kind of way.
func TestLoads(t *testing.T) {
	server := Ports{First: 27000, Count: 2}
	plainIn, plainOut, tlsIn, tlsOut := Ports{27010, 2}, Ports{27020, 2}, Ports{27030, 2}, Ports{27040, 2}
	serve(t, server)
	relay(t, RelayPlain, plainIn, server.Targets(loopback))
	relay(t, RelayPlain, plainOut, plainIn.Targets(loopback))
	relay(t, RelayTLSServer, tlsIn, server.Targets(loopback))
	relay(t, RelayTLSClient, tlsOut, tlsIn.Targets(loopback))
	load := start(t, Generate)
	for name, ports := range map[string]Ports{"direct": server, "relays": plainOut, "tls": tlsOut} {
		for _, l := range []Load{
			{Kind: Bulk, Connections: 3}, {Kind: Requests, Connections: 3, Payload: 1024, Rate: 500}, {Kind: Requests, Connections: 2, Payload: 10},
			{Kind: Connects, Connections: 2, Payload: 64}, {Kind: Hold, Connections: 50, Payload: 1},
		} {
			l.Targets, l.Duration = ports.Targets(loopback), 50*time.Millisecond
			if r := load.ask(Request{Prepare: &l}); r.Error != "" {
				t.Fatalf("%s %s: prepare: %s", name, l.Kind, r.Error)
			}
			r := load.ask(Request{Run: true})
			if r.Error != "" || r.Result == nil || r.Result.Errors > 0 {
				t.Fatalf("%s %s: %+v", name, l.Kind, r)
			}
			if l.Kind == Bulk && r.Result.Bytes == 0 || l.Kind == Requests && r.Result.Count == 0 || l.Kind == Connects && r.Result.PerSecond == 0 {
				t.Errorf("%s %s: nothing was measured: %+v", name, l.Kind, r.Result)
			}
			if r := load.ask(Request{Finish: true}); r.Error != "" {
				t.Errorf("%s %s: finish: %s", name, l.Kind, r.Error)
			}
		}
	}
}

// TestTLSRelayIsNotPlain is TestLoads' negative control: without its other end the bytes lead nowhere.
func TestTLSRelayIsNotPlain(t *testing.T) {
	server, out := Ports{27050, 1}, Ports{27060, 1}
	serve(t, server)
	relay(t, RelayTLSClient, out, server.Targets(loopback))
	load := start(t, Generate)
	r := load.ask(Request{Prepare: &Load{Kind: Requests, Connections: 1, Payload: 10, Targets: out.Targets(loopback)}})
	if r.Error == "" {
		t.Error("a relay that speaks TLS to a server that does not carried a request")
	}
}

func TestMistakesAreAnswered(t *testing.T) {
	load := start(t, Generate)
	for _, r := range []Request{{}, {Prepare: &Load{}}, {Prepare: &Load{Kind: Connects, Targets: []string{"127.0.0.1:1"}, Connections: 1}},
		{Prepare: &Load{Kind: Bulk, Targets: []string{"127.0.0.1:1"}, Connections: 2}}} {
		if a := load.ask(r); a.Error == "" {
			t.Errorf("%+v was accepted", r)
		}
	}
	if err := Relay(t.Context(), "nonsense", Ports{27070, 1}, []string{"127.0.0.1:1"}, strings.NewReader(""), io.Discard); err == nil {
		t.Error("a relay of an unknown kind started")
	}
}

func TestUsage(t *testing.T) {
	load := start(t, Generate)
	var before, after unix.Timespec
	first := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &before)
	got, err := CPUTime(os.Getpid())
	last := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &after)
	if errors.Join(first, err, last) != nil || int64(got) < before.Nano() || int64(got) > after.Nano() {
		t.Errorf("CPU time %s, want between %d and %d ns: %v", got, before.Nano(), after.Nano(), errors.Join(first, err, last))
	}
	if u := load.ask(Request{Usage: true}).Usage; u == nil || u.Process.PID != os.Getpid() || u.Process.Namespace == "" {
		t.Errorf("%+v", u)
	}
	if rss, err := Memory("self", "VmRSS"); err != nil || rss < 1<<20 {
		t.Errorf("%d bytes resident, %v", rss, err)
	}
	if _, err := CPUTime(1 << 22); err == nil {
		t.Error("a process that does not exist has used CPU time")
	}
	if _, err := Memory("self", "VmNothing"); err == nil {
		t.Error("a field that does not exist has a value")
	}
}
