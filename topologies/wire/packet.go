// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// parsed is what filters and flows look at of a packet. Ports are 0 where the protocol has none.
type parsed struct {
	network  gopacket.LayerType // 0: neither IPv4 nor IPv6
	protocol string             // "tcp", "udp", "icmp" or ""
	src, dst netip.AddrPort
	seq      uint32
	flags    tcpFlags
	fragment bool   // part of an IP packet that was cut
	payload  []byte // of TCP or UDP; points into the frame
}

type tcpFlags struct{ syn, ack, fin, rst bool }

func (f tcpFlags) has(name string) bool {
	return name == "syn" && f.syn || name == "fin" && f.fin || name == "rst" && f.rst
}

// String is like "SYN ACK".
func (f tcpFlags) String() string {
	var set []string
	for _, one := range []struct {
		is   bool
		name string
	}{{f.syn, "SYN"}, {f.fin, "FIN"}, {f.rst, "RST"}, {f.ack, "ACK"}} {
		if one.is {
			set = append(set, one.name)
		}
	}
	return strings.Join(set, " ")
}

// parser reads Ethernet frames one after the other; it belongs to one goroutine.
type parser struct {
	eth     layers.Ethernet
	ip4     layers.IPv4
	ip6     layers.IPv6
	ext     layers.IPv6ExtensionSkipper
	tcp     layers.TCP
	udp     layers.UDP
	icmp4   layers.ICMPv4
	icmp6   layers.ICMPv6
	decoder *gopacket.DecodingLayerParser
	seen    []gopacket.LayerType
}

func newParser() *parser {
	p := &parser{}
	p.decoder = gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet,
		&p.eth, &p.ip4, &p.ip6, &p.ext, &p.tcp, &p.udp, &p.icmp4, &p.icmp6)
	p.decoder.IgnoreUnsupported = true
	return p
}

// parse reads a frame. What is damaged or of an unknown protocol is left at its zero value.
func (p *parser) parse(frame []byte) parsed {
	var out parsed
	_ = p.decoder.DecodeLayers(frame, &p.seen) // an error means that what follows the layers seen is unknown
	var src, dst netip.Addr
	var sport, dport uint16
	for _, l := range p.seen {
		switch l {
		case layers.LayerTypeIPv4:
			out.network = l
			out.fragment = p.ip4.FragOffset > 0 || p.ip4.Flags&layers.IPv4MoreFragments != 0
			src, _ = netip.AddrFromSlice(p.ip4.SrcIP.To4())
			dst, _ = netip.AddrFromSlice(p.ip4.DstIP.To4())
		case layers.LayerTypeIPv6:
			out.network = l
			out.fragment = p.ip6.NextHeader == layers.IPProtocolIPv6Fragment
			src, _ = netip.AddrFromSlice(p.ip6.SrcIP)
			dst, _ = netip.AddrFromSlice(p.ip6.DstIP)
		case layers.LayerTypeTCP:
			out.protocol, out.seq, out.payload = "tcp", p.tcp.Seq, p.tcp.Payload
			out.flags = tcpFlags{syn: p.tcp.SYN, ack: p.tcp.ACK, fin: p.tcp.FIN, rst: p.tcp.RST}
			sport, dport = uint16(p.tcp.SrcPort), uint16(p.tcp.DstPort)
		case layers.LayerTypeUDP:
			out.protocol, out.payload = "udp", p.udp.Payload
			sport, dport = uint16(p.udp.SrcPort), uint16(p.udp.DstPort)
		case layers.LayerTypeICMPv4, layers.LayerTypeICMPv6:
			out.protocol = "icmp"
		}
	}
	out.src, out.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return out
}
