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

// dial connects as a ztunnel does, once somebody listens.
func dial(t *testing.T, path string) net.Conn {
	for t.Context().Err() == nil {
		c, err := net.Dial("unixpacket", path)
		if err != nil {
			continue
		}
		if _, err := c.Write(hello); err != nil {
			t.Error(err)
		}
		return c
	}
	return nil
}

// TestTellsWhoHungUp: the other side ends the first connection and stays on the second, where it answers with an error, and
// however late.
func TestTellsWhoHungUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		first := dial(t, path)
		_, _ = first.Read(buf)
		_ = first.Close()
		second := dial(t, path)
		defer second.Close()
		for _, answer := range []string{field(1, field(1, "no")), field(1, "")} {
			_, _ = second.Read(buf)
			_, _ = second.Write([]byte(answer))
		}
		_, _ = second.Read(buf) // until the peer ends it
	}()
	var out bytes.Buffer
	args := []string{"--socket", path, "agent", "del-unknown", "add-no-descriptor"}
	if err := run(t.Context(), args, strings.NewReader(""), &out, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	<-done
	var got []Outcome
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != 2 {
		t.Fatalf("%s: %v", &out, err)
	}
	if !got[0].HungUp || got[1].HungUp || got[1].Said != "no" {
		t.Errorf("%+v", got)
	}
}
