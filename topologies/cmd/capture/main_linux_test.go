// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/topologies/wire"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// call connects to a listener on the namespace's loopback and sends text.
func call(t *testing.T, n *netns.NS, text string) {
	t.Helper()
	l, err := n.ListenTCP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := n.DialTCP(t.Context(), netip.MustParseAddrPort(l.Addr().String()), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, len(text))); err != nil {
		t.Fatal(err)
	}
}

// TestEndsWithItsInput runs the command as a driver does, and ends it by closing its input.
func TestEndsWithItsInput(t *testing.T) {
	for name, end := range map[string]func(stdin io.Closer, cancel func()){
		"end of input": func(stdin io.Closer, _ func()) { stdin.Close() },
		"signal":       func(_ io.Closer, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			n := nstest.New(t)
			stdin, hold, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			defer hold.Close()
			says, stderr := io.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out bytes.Buffer
			done := make(chan error, 1)
			go func() {
				done <- n.Do(func() error {
					err := run(ctx, []string{"--interface", "lo", "--filter", "tcp"}, stdin, &out, stderr)
					stderr.Close()
					return err
				})
			}()
			lines := bufio.NewScanner(says)
			if !lines.Scan() || lines.Text() != "ready" {
				t.Fatalf("first line %q", lines.Text())
			}
			call(t, n, "plain text")
			end(hold, cancel)
			last := ""
			for lines.Scan() {
				last = lines.Text()
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			var stats wire.Stats
			if err := json.Unmarshal([]byte(last), &stats); err != nil || stats.Packets == 0 || stats.Drops != 0 {
				t.Errorf("last line %q, %v", last, err)
			}
			c, err := wire.Read(&out)
			if err != nil || !c.Contains([]byte("plain text")) || len(c.Packets()) != stats.Packets {
				t.Errorf("%v, %v", c, err)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for want, args := range map[string][]string{
		`unknown word "vlan"`:           {"--filter", "vlan 7"},
		`unexpected argument "eth0"`:    {"eth0"},
		"flag provided but not defined": {"--snaplen", "5"},
	} {
		err := run(t.Context(), args, null, io.Discard, io.Discard)
		if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v; want %s", args, err, want)
		}
	}
}
