// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"ztunnel"}, {"nobody", "all"}, {"--what"}} {
		if err := run(t.Context(), args, strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}); err == nil {
			t.Errorf("%q were taken", args)
		}
	}
}

// TestTellsWhoHungUp: the other side ends the first connection and stays on the second, where it answers with an error.
func TestTellsWhoHungUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var open []net.Conn
		defer func() {
			<-over // what is open stays open until then
			for _, c := range open {
				c.Close()
			}
		}()
		for i := range 2 {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open = append(open, c)
			_, _ = c.Read(make([]byte, 4096))
			if i == 0 {
				c.Close()
				continue
			}
			_, _ = c.Write([]byte(field(1, field(1, "no"))))
		}
	}()
	var out bytes.Buffer
	args := []string{"--socket", path, "ztunnel", "no-message", "unknown-version"}
	if err := run(t.Context(), args, strings.NewReader(""), &out, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	close(over)
	<-done
	var got []Outcome
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != 2 {
		t.Fatalf("%s: %v", &out, err)
	}
	if !got[0].HungUp || got[1].HungUp || got[1].Said != "no" {
		t.Errorf("%+v", got)
	}
}
