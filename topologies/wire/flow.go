// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Direction is a way through a flow.
type Direction uint8

// Directions.
const (
	ToServer Direction = iota // from Src to Dst
	ToClient
)

func (d Direction) String() string {
	if d == ToServer {
		return "to server"
	}
	return "to client"
}

// Flow is one TCP connection, or the datagrams between two UDP addresses, as seen on one interface.
type Flow struct {
	Interface string
	Protocol  string // "tcp" or "udp"
	// Src opened the connection; where the recording began later, whoever sent the first packet recorded.
	Src, Dst    netip.AddrPort
	First, Last time.Time // of its packets
	Packets     int
	Opened      bool // its first SYN was recorded
	Reset       bool // a TCP reset was recorded

	ways [2]way
}

func (f *Flow) String() string {
	return fmt.Sprintf("%s %s -> %s on %s", f.Protocol, f.Src, f.Dst, f.Interface)
}

// Payload is what was sent in one direction: the byte stream up to the first byte that was not recorded, or all datagrams one
// after the other. It must not be changed.
func (f *Flow) Payload(d Direction) []byte { return f.ways[d].stream }

// Missing is the number of bytes of the direction's stream that are known to have been sent and were not recorded.
func (f *Flow) Missing(d Direction) int64 { return f.ways[d].missing }

// way is one direction of a flow. Offsets count from the first byte of the stream.
type way struct {
	based    bool
	base     uint32 // sequence number of offset 0
	highest  int64  // offset after the last byte seen so far, to unwrap sequence numbers
	segments []segment

	stream  []byte
	missing int64
}

type segment struct {
	offset int64
	data   []byte
}

// flowTable sorts packets into flows.
type flowTable struct {
	flows []*Flow
	open  map[flowKey]*Flow
}

// flowKey is a flow as its packets show it, from the one side or the other.
type flowKey struct {
	intf, protocol string
	src, dst       netip.AddrPort
}

func newFlowTable() *flowTable { return &flowTable{open: map[flowKey]*Flow{}} }

func (t *flowTable) add(intf string, at time.Time, p parsed) {
	if p.protocol != "tcp" && p.protocol != "udp" {
		return
	}
	f, d := t.find(intf, p)
	if f == nil {
		f = &Flow{Interface: intf, Protocol: p.protocol, Src: p.src, Dst: p.dst, First: at}
		d = ToServer
		if p.flags.syn && p.flags.ack {
			f.Src, f.Dst, d = p.dst, p.src, ToClient
		}
		t.flows = append(t.flows, f)
		t.open[flowKey{intf, p.protocol, f.Src, f.Dst}] = f
	}
	f.Last = at
	f.Packets++
	if f.Protocol == "udp" {
		f.ways[d].stream = append(f.ways[d].stream, p.payload...)
		return
	}
	f.Opened = f.Opened || p.flags.syn && !p.flags.ack
	f.Reset = f.Reset || p.flags.rst
	f.ways[d].add(p)
}

// find is the flow that the packet belongs to. A SYN on a connection that has one with another sequence number begins a new flow:
// the ports were used again.
func (t *flowTable) find(intf string, p parsed) (*Flow, Direction) {
	key := flowKey{intf, p.protocol, p.src, p.dst}
	if f := t.open[key]; f != nil {
		again := p.flags.syn && !p.flags.ack && f.ways[ToServer].based && f.ways[ToServer].base != p.seq+1
		if again {
			delete(t.open, key)
			return nil, ToServer
		}
		return f, ToServer
	}
	key.src, key.dst = p.dst, p.src
	return t.open[key], ToClient
}

func (w *way) add(p parsed) {
	seq := p.seq
	if p.flags.syn {
		seq++ // a SYN takes one number, before its data if it has any
	}
	if !w.based {
		if p.flags.rst && !p.flags.syn && len(p.payload) == 0 {
			return // its number may be 0
		}
		w.based, w.base = true, seq
	}
	offset := w.highest + int64(int32(seq-(w.base+uint32(w.highest))))
	if len(p.payload) == 0 {
		return
	}
	w.segments = append(w.segments, segment{offset: offset, data: p.payload})
	w.highest = max(w.highest, offset+int64(len(p.payload)))
}

// assemble puts the streams together once all packets are there.
func (f *Flow) assemble() {
	if f.Protocol != "tcp" {
		return
	}
	for d := range f.ways {
		f.ways[d].assemble(f.Opened)
	}
}

// assemble sorts segments and drops what was sent twice. Without the opening, the stream begins at the first byte seen.
func (w *way) assemble(opened bool) {
	slices.SortStableFunc(w.segments, func(a, b segment) int { return int(min(max(a.offset-b.offset, -1), 1)) })
	at := int64(0)
	if len(w.segments) > 0 && (!opened || w.segments[0].offset < 0) {
		at = w.segments[0].offset
	}
	for _, s := range w.segments {
		end := s.offset + int64(len(s.data))
		if end <= at {
			continue
		}
		if s.offset > at {
			w.missing += s.offset - at
			at = s.offset
		}
		if w.missing == 0 {
			w.stream = append(w.stream, s.data[at-s.offset:]...)
		}
		at = end
	}
	w.segments = nil
}
