// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Capture is a recording that was read. It is not changed any more and may be used by several goroutines.
type Capture struct {
	packets []Packet
	flows   []*Flow
}

// Packet is one recorded frame. The zero Src and Dst mean that it is no IP packet.
type Packet struct {
	Time      time.Time
	Interface string
	Protocol  string // "tcp", "udp", "icmp", or "" for others
	Src, Dst  netip.AddrPort
	Frame     []byte // from the Ethernet header on
	Payload   []byte // of TCP or UDP
	Flags     string // of TCP, like "SYN ACK"
	Seq       uint32 // of TCP
	Fragment  bool   // part of an IP packet that was cut
}

// Read reads a pcapng recording of Ethernet frames to its end. A recording that ends within a packet is an error.
func Read(r io.Reader) (*Capture, error) {
	c := &Capture{}
	in, err := pcapgo.NewNgReader(r, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		return nil, fmt.Errorf("read recording: %w", err)
	}
	table, p := newFlowTable(), newParser()
	for {
		frame, info, err := in.ReadPacketData()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read recording: packet %d: %w", len(c.packets)+1, err)
		}
		intf, err := in.Interface(info.InterfaceIndex)
		if err != nil {
			return nil, fmt.Errorf("read recording: packet %d: %w", len(c.packets)+1, err)
		}
		if intf.LinkType != layers.LinkTypeEthernet {
			return nil, fmt.Errorf("read recording: interface %s is of type %s, not Ethernet", intf.Name, intf.LinkType)
		}
		seen := p.parse(frame)
		c.packets = append(c.packets, Packet{
			Time: info.Timestamp, Interface: intf.Name, Protocol: seen.protocol, Src: seen.src, Dst: seen.dst, Frame: frame, Payload: seen.payload,
			Flags: seen.flags.String(), Seq: seen.seq, Fragment: seen.fragment,
		})
		table.add(intf.Name, info.Timestamp, seen)
	}
	c.flows = table.flows
	for _, f := range c.flows {
		f.assemble()
	}
	return c, nil
}

// Packets are all that was recorded, in the order of recording.
func (c *Capture) Packets() []Packet { return c.packets }

// Flows are the TCP connections and UDP conversations, in the order of their first packets. One that crosses several recorded interfaces is one
// flow for each.
func (c *Capture) Flows() []*Flow { return c.flows }

// To are the flows to that server port.
func (c *Capture) To(port uint16) []*Flow {
	return slices.DeleteFunc(slices.Clone(c.flows), func(f *Flow) bool { return f.Dst.Port() != port })
}

// Contains reports whether text was to be read anywhere: in a connection's stream, also across packets, or within any one frame.
func (c *Capture) Contains(text []byte) bool {
	for _, f := range c.flows {
		if bytes.Contains(f.Payload(ToServer), text) || bytes.Contains(f.Payload(ToClient), text) {
			return true
		}
	}
	return slices.ContainsFunc(c.packets, func(p Packet) bool { return bytes.Contains(p.Frame, text) })
}

// Find are the flows in whose streams text was to be read.
func (c *Capture) Find(text []byte) []*Flow {
	return slices.DeleteFunc(slices.Clone(c.flows), func(f *Flow) bool {
		return !bytes.Contains(f.Payload(ToServer), text) && !bytes.Contains(f.Payload(ToClient), text)
	})
}
