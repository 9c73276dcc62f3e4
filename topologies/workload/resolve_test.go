// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestResolveOptionsRoundTrip(t *testing.T) {
	for _, o := range []ResolveOptions{
		{Type: "A"}, {Type: "SRV", Server: "10.0.0.1:5353", TCP: true, EDNS: 1232, Search: true, Timeout: 2 * time.Second}, {Type: "UPDATE"},
	} {
		got, name, err := ParseResolve(ResolveCommand("cart.shop", o)[2:], io.Discard)
		if err != nil || name != "cart.shop" {
			t.Errorf("%+v: name %q, %v", o, name, err)
		}
		if diff := cmp.Diff(o, got); diff != "" {
			t.Errorf("%+v came back changed:\n%s", o, diff)
		}
	}
	for _, args := range [][]string{{}, {"a", "b"}, {"--type", "NOSUCH", "a"}, {"bad..name"}} {
		if _, _, err := ParseResolve(args, io.Discard); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}

// startNameServer serves on a free port of loopback.
func startNameServer(t *testing.T, forward string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- NameServer{Listen: at, Forward: forward}.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return at
}

func TestNameServer(t *testing.T) {
	last := startNameServer(t, "")
	at := startNameServer(t, last)
	for _, c := range []struct {
		name  string
		o     ResolveOptions
		rcode string
		want  []string
	}{
		{"who.lab.test", ResolveOptions{Type: "TXT", EDNS: 900}, "NOERROR", []string{`who.lab.test. TXT "127.0.0.1 udp 900"`}},
		{"who.lab.test", ResolveOptions{Type: "TXT", TCP: true}, "NOERROR", []string{`who.lab.test. TXT "127.0.0.1 tcp 0"`}},
		{"2.many.lab.test", ResolveOptions{}, "NOERROR", []string{"2.many.lab.test. A 198.51.100.1", "2.many.lab.test. A 198.51.100.2"}},
		{"1.slow.lab.test", ResolveOptions{}, "NOERROR", []string{"1.slow.lab.test. A 198.51.100.1"}},
		{"no.such.lab.test", ResolveOptions{}, "NXDOMAIN", nil},
		{"elsewhere.test", ResolveOptions{}, "NXDOMAIN", nil},
		{"lab.test", ResolveOptions{Type: "UPDATE"}, "NOERROR", nil},
		{"lab.test", ResolveOptions{Type: "NOTIFY"}, "NOERROR", nil},
	} {
		c.o.Server = at
		r, err := Resolve(t.Context(), c.name, c.o)
		if err != nil || r.Rcode != c.rcode || !slices.Equal(r.Answers, c.want) {
			t.Errorf("%s: got %+v, %v", c.name, r, err)
		}
	}
	r, err := Resolve(t.Context(), "100.many.lab.test", ResolveOptions{Server: at})
	if err != nil || !r.Truncated || r.Bytes > 512 {
		t.Errorf("more than fits: %+v, %v", r, err)
	}
	r, err = Resolve(t.Context(), "mute.lab.test", ResolveOptions{Server: at, Timeout: 50 * time.Millisecond})
	if err != nil || r.Class != ClassTimeout || r.Failed() == nil {
		t.Errorf("silence: %+v, %v", r, err)
	}
	if got := fmt.Sprint(Resolution{Answers: []string{"a. CNAME b.", "b. A 192.0.2.1"}}.Data("A")); got != "[192.0.2.1]" {
		t.Errorf("data: %s", got)
	}
}
