// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const someLog = `{"time":"2026-11-29T09:00:00.1Z","level":"INFO","msg":"proxy started","uid":"u1","n":3}
{"time":"2026-11-29T09:00:00.2Z","level":"WARN","msg":"stream ended","err":"EOF"}
panic: something
	at file.go:1
{"time":"2026-11-29T09:00:00.5Z","level":"error","scope":"access","message":"connection failed","src.addr":"10.0.0.1:40000","src.identity":"spiffe://cluster.local/ns/shop/sa/web","dst.addr":"10.0.0.2:15008","dst.hbone_addr":"10.0.0.2:8080","direction":"inbound","error":"denied","policy":"shop/deny","response_flags":"DENY","start_unix_nano":1795942800400000000,"schema":1}
`

func TestLogEvents(t *testing.T) {
	events, err := LogEvents("ztunnel node1", strings.NewReader(someLog))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprintf("%s %s %s", e.Time.UTC().Format("05.0"), e.Kind, e.Text))
	}
	want := []string{
		`00.1 log proxy started uid="u1" n=3`,
		`00.2 log WARN: stream ended err="EOF"`,
		`00.2 log panic: something`,
		`00.2 log at file.go:1`,
		`00.4 proxy inbound 10.0.0.1:40000 → 10.0.0.2:15008 (CONNECT 10.0.0.2:8080) begins, from spiffe://cluster.local/ns/shop/sa/web`,
		`00.5 decision inbound 10.0.0.1:40000 → 10.0.0.2:15008 (CONNECT 10.0.0.2:8080) was denied by shop/deny`,
		`00.5 proxy inbound 10.0.0.1:40000 → 10.0.0.2:15008 (CONNECT 10.0.0.2:8080): connection failed, flags DENY, error denied`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestTimelineIsInOrderAndWithin(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, int64(ms)*int64(time.Millisecond)) }
	all := Timeline{{at(30), EventLog, "control", "c"}, {at(10), EventApp, "shop/web", "a"}, {at(20), EventPacket, "wire node1", "b"}, {at(99), EventLog, "control", "late"}, {at(1), EventLog, "control", "early"}}
	var b bytes.Buffer
	if err := all.Within(at(10), at(30)).Draw(&b, 0); err != nil {
		t.Fatal(err)
	}
	want := `    +0.00 ms  app       shop/web    a
   +10.00 ms  packet    wire node1  b
   +20.00 ms  log       control     c
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	b.Reset()
	if err := all.Within(at(0), at(100)).Draw(&b, 3); err != nil {
		t.Fatal(err)
	}
	if text := b.String(); !strings.Contains(text, "… 2 more …") || strings.Count(text, "\n") != 4 || !strings.Contains(text, "late") || !strings.Contains(text, "early") {
		t.Errorf("want the beginning and the end:\n%s", text)
	}
}
