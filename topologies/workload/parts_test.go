// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestOptionsRoundTrip(t *testing.T) {
	want := Options{
		Count: 3, Concurrency: 2, Interval: time.Second, Duration: time.Minute, Timeout: 3 * time.Second, KeepOpen: true,
		Ledger: true, UntilEOF: true,
		Silent: time.Millisecond, PingPong: 4, Size: 5, Download: 6, HTTP2: true, Method: "PUT",
		Header: []string{"A: b", "C: d e"}, Family: 6, MSS: 1400, Mark: 0x539, Bind: netip.MustParseAddr("169.254.7.127"),
	}
	for _, o := range []Options{want, {}, {HalfClose: true}, {PeerHalfClose: true}, {Reset: true}, {PeerReset: true}} {
		got, url, err := ParseCall(o.Args("tcp://cart:9000"), io.Discard)
		if err != nil || url != "tcp://cart:9000" {
			t.Errorf("ParseCall: %q, %v", url, err)
		}
		if diff := cmp.Diff(o, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("options (-want +got):\n%s", diff)
		}
	}
}

func TestParseCallRefuses(t *testing.T) {
	for _, args := range []string{
		"", "http://a http://b", "ftp://a", "http://", "tcp://a", "--family 5 http://a", "--count -1 http://a", "--header x http://a",
		"--half-close --ping-pong 2 tcp://a:1", "--half-close --keep-open tcp://a:1", "--nosuch http://a", "--timeout x http://a",
	} {
		if _, _, err := ParseCall(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("ParseCall(%s) succeeded", args)
		}
	}
}

func TestParseServe(t *testing.T) {
	c, err := ParseServe(strings.Fields("--http 8080 --http 8090@localhost --udp 9@pod"), io.Discard)
	want := map[string][]Port{HTTP: {{8080, BindAny}, {8090, BindLocalhost}}, UDP: {{9, BindPod}}}
	if diff := cmp.Diff(want, c.Ports); diff != "" || err != nil {
		t.Errorf("ports (-want +got):\n%s %v", diff, err)
	}
	for _, args := range []string{"--http x", "--http 70000", "--tcp 1@eth0", "8080"} {
		if _, err := ParseServe(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("ParseServe(%s) succeeded", args)
		}
	}
}

// The checker finds a byte that is wrong, doubled or missing, wherever it is.
func TestPatternChecker(t *testing.T) {
	const n = 3*patternPeriod + 17
	whole, err := io.ReadAll(&patternReader{n: n})
	if err != nil || len(whole) != n {
		t.Fatalf("%d bytes, %v", len(whole), err)
	}
	if bytes.IndexByte(whole, 0) >= 0 {
		t.Error("the pattern has a zero byte")
	}
	var b bytes.Buffer
	if m, err := writePattern(&b, n); m != n || err != nil || !bytes.Equal(b.Bytes(), whole) {
		t.Errorf("writePattern wrote %d bytes, %v, or other ones", m, err)
	}
	c := newChecker()
	for rest := whole; len(rest) > 0; {
		k := min(len(rest), 4093)
		if _, err := c.Write(rest[:k]); err != nil {
			t.Fatal(err)
		}
		rest = rest[k:]
	}
	if c.n != n || c.sum() != patternSum(n) {
		t.Errorf("%d bytes, sum %s", c.n, c.sum())
	}
	for name, bad := range map[string][]byte{
		"wrong":   append(bytes.Clone(whole[:n-1]), whole[n-1]^1),
		"doubled": append(bytes.Clone(whole[:40000]), whole[39999:]...),
		"missing": append(bytes.Clone(whole[:100]), whole[101:]...),
	} {
		if _, err := newChecker().Write(bad); !errors.Is(err, errMismatch) {
			t.Errorf("%s byte: %v", name, err)
		}
	}
}

func TestReadQuestion(t *testing.T) {
	for in, want := range map[string]question{
		"payload":              {},
		AskSeen + "\nrest":     {verb: AskSeen},
		AskTail + " 12\n":      {verb: AskTail, n: 12},
		AskFirst + " 0 tok\n":  {verb: AskFirst, token: "tok"},
		AskReport + " tok\nxx": {verb: AskReport, token: "tok"},
	} {
		got, err := readQuestion(bufio.NewReaderSize(strings.NewReader(in), maxQuestion))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "\x00\n", "\x00what\n", AskTail + "\n", AskTail + " -1\n", AskTail + " x\n", AskSeen, AskSeen + strings.Repeat("x", 300)} {
		if q, err := readQuestion(bufio.NewReaderSize(strings.NewReader(in), maxQuestion)); err == nil {
			t.Errorf("%q: %+v", in, q)
		}
	}
}

func FuzzParseQuestion(f *testing.F) {
	f.Add(AskTail + " 1")
	f.Add("\x00")
	f.Fuzz(func(t *testing.T, line string) {
		if q, err := parseQuestion("\x00" + line); err == nil && (q.n < 0 || q.verb == "") {
			t.Errorf("%q: %+v", line, q)
		}
	})
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, in []byte) {
		msg, err := readMessage(bytes.NewReader(in))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := writeMessage(&b, msg); err != nil || !bytes.HasPrefix(in, b.Bytes()) {
			t.Errorf("round trip of %x gave %x, %v", in, b.Bytes(), err)
		}
	})
}
