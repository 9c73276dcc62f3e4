// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Via is how a forged packet leaves.
type Via string

// Ways out of a pod.
const (
	ViaPacket Via = "packet" // an AF_PACKET socket: no rule of netfilter sees it
	ViaRaw    Via = "raw"    // a raw IP socket: the rules for output apply
)

// SYN is a TCP SYN to send over IPv4.
type SYN struct {
	Via    Via
	To     netip.AddrPort
	Source netip.Addr // the zero Addr means the pod's own
	Wait   time.Duration
}

// Reply is what came back to a SYN.
type Reply struct {
	Sent   bool           `json:"sent"`
	Error  string         `json:"error,omitempty"` // why it was not sent
	From   netip.AddrPort `json:"from"`
	Answer string         `json:"answer"` // syn-ack, rst, or none
}

// Answers.
const (
	AnswerSYNACK = "syn-ack"
	AnswerRST    = "rst"
	AnswerNone   = "none"
)

// sourcePort of every forged SYN, above what the kernel gives to sockets by itself.
const sourcePort = 61999

const ipHeader, tcpHeader = 20, 20

// packet is the SYN with its IP header.
func (s SYN) packet(source netip.Addr) []byte {
	p := make([]byte, ipHeader+tcpHeader)
	p[0], p[8], p[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	src, dst := source.As4(), s.To.Addr().As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], checksum(0, p[:ipHeader]))
	t := p[ipHeader:]
	binary.BigEndian.PutUint16(t, sourcePort)
	binary.BigEndian.PutUint16(t[2:], s.To.Port())
	binary.BigEndian.PutUint32(t[4:], 0x1729)
	t[12], t[13] = tcpHeader/4<<4, flagSYN
	binary.BigEndian.PutUint16(t[14:], 65535)
	pseudo := uint32(6 + len(t))
	for i := 12; i < ipHeader; i += 2 {
		pseudo += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(t[16:], checksum(pseudo, t))
	return p
}

const flagSYN, flagRST, flagACK = 2, 4, 16

func checksum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// answers reads a packet that arrived; ok says that it answers s.
func (s SYN) answers(p []byte) (r Reply, ok bool) {
	if len(p) < ipHeader || p[0]>>4 != 4 || p[9] != 6 {
		return r, false
	}
	head := int(p[0]&0xf) * 4
	if head < ipHeader || len(p) < head+tcpHeader {
		return r, false
	}
	t := p[head:]
	r.From = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), binary.BigEndian.Uint16(t))
	if r.From.Addr() != s.To.Addr() || binary.BigEndian.Uint16(t[2:]) != sourcePort {
		return r, false
	}
	switch flags := t[13]; {
	case flags&flagRST != 0:
		r.Answer = AnswerRST
	case flags&(flagSYN|flagACK) == flagSYN|flagACK:
		r.Answer = AnswerSYNACK
	default:
		return r, false
	}
	return r, true
}
