// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"testing"
	"time"
)

var (
	client = netip.MustParseAddrPort("10.0.0.1:40000")
	server = netip.MustParseAddrPort("10.0.0.2:80")
)

// packet is one of a made-up conversation.
type packet struct {
	back  bool
	seq   uint32
	flags tcpFlags
	data  string
}

func conversation(packets ...packet) []*Flow {
	t := newFlowTable()
	for i, p := range packets {
		in := parsed{protocol: "tcp", src: client, dst: server, seq: p.seq, flags: p.flags, payload: []byte(p.data)}
		if p.back {
			in.src, in.dst = server, client
		}
		t.add("eth0", time.Unix(int64(i), 0), in)
	}
	for _, f := range t.flows {
		f.assemble()
	}
	return t.flows
}

var (
	syn    = tcpFlags{syn: true}
	synAck = tcpFlags{syn: true, ack: true}
	ack    = tcpFlags{ack: true}
)

func TestReassembly(t *testing.T) {
	const top = 0xfffffffe // the sequence number wraps early
	for name, c := range map[string]struct {
		packets []packet
		up      string
		missing int64
	}{
		"in order":          {[]packet{{seq: 99, flags: syn}, {seq: 100, data: "abc"}, {seq: 103, data: "def"}}, "abcdef", 0},
		"out of order":      {[]packet{{seq: 99, flags: syn}, {seq: 103, data: "def"}, {seq: 100, data: "abc"}}, "abcdef", 0},
		"sent twice":        {[]packet{{seq: 99, flags: syn}, {seq: 100, data: "abc"}, {seq: 100, data: "abc"}, {seq: 103, data: "d"}}, "abcd", 0},
		"overlap":           {[]packet{{seq: 99, flags: syn}, {seq: 100, data: "abc"}, {seq: 101, data: "bcdef"}}, "abcdef", 0},
		"keepalive probe":   {[]packet{{seq: 99, flags: syn}, {seq: 100, data: "abc"}, {seq: 102, data: "c"}, {seq: 103, data: "d"}}, "abcd", 0},
		"wrap":              {[]packet{{seq: top, flags: syn}, {seq: top + 1, data: "ab"}, {seq: 1, data: "cd"}}, "abcd", 0},
		"wrap out of order": {[]packet{{seq: top, flags: syn}, {seq: 1, data: "cd"}, {seq: top + 1, data: "ab"}}, "abcd", 0},
		"a hole":            {[]packet{{seq: 99, flags: syn}, {seq: 100, data: "abc"}, {seq: 110, data: "x"}}, "abc", 7},
		"joined late":       {[]packet{{seq: 500, flags: ack, data: "late"}, {seq: 504, data: "r"}}, "later", 0},
		"the first is lost": {[]packet{{seq: 99, flags: syn}, {seq: 103, data: "def"}}, "", 3},
		"data with SYN":     {[]packet{{seq: 99, flags: syn, data: "fast"}, {seq: 104, data: "open"}}, "fastopen", 0},
	} {
		t.Run(name, func(t *testing.T) {
			flows := conversation(c.packets...)
			if len(flows) != 1 {
				t.Fatalf("%d flows", len(flows))
			}
			f := flows[0]
			if got := string(f.Payload(ToServer)); got != c.up || f.Missing(ToServer) != c.missing {
				t.Errorf("stream %q, %d missing; want %q, %d", got, f.Missing(ToServer), c.up, c.missing)
			}
		})
	}
}

func TestFlowKnowsItsEnds(t *testing.T) {
	for name, packets := range map[string][]packet{
		"from the start":       {{seq: 1, flags: syn}, {back: true, seq: 7, flags: synAck}, {seq: 2, flags: ack, data: "up"}, {back: true, seq: 8, data: "down"}},
		"from the second":      {{back: true, seq: 7, flags: synAck}, {seq: 2, flags: ack, data: "up"}, {back: true, seq: 8, data: "down"}},
		"from the first bytes": {{seq: 2, flags: ack, data: "up"}, {back: true, seq: 8, data: "down"}},
	} {
		flows := conversation(packets...)
		if len(flows) != 1 || flows[0].Src != client || flows[0].Dst != server {
			t.Fatalf("%s: %v", name, flows)
		}
		up, down := string(flows[0].Payload(ToServer)), string(flows[0].Payload(ToClient))
		if up != "up" || down != "down" || flows[0].Packets != len(packets) {
			t.Errorf("%s: %q, %q, %d packets", name, up, down, flows[0].Packets)
		}
		if flows[0].Opened != (name == "from the start") {
			t.Errorf("%s: Opened = %t", name, flows[0].Opened)
		}
	}
}

func TestPortsUsedAgain(t *testing.T) {
	flows := conversation(
		packet{seq: 1, flags: syn}, packet{seq: 1, flags: syn}, packet{seq: 2, data: "first"}, packet{back: true, flags: tcpFlags{rst: true}},
		packet{seq: 900, flags: syn}, packet{seq: 901, data: "second"},
	)
	if len(flows) != 2 {
		t.Fatalf("%d flows, want 2", len(flows))
	}
	if a, b := string(flows[0].Payload(ToServer)), string(flows[1].Payload(ToServer)); a != "first" || b != "second" {
		t.Errorf("streams %q and %q", a, b)
	}
	if !flows[0].Reset || flows[1].Reset {
		t.Errorf("Reset = %t, %t", flows[0].Reset, flows[1].Reset)
	}
}
