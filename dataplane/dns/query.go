// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

const headerBytes = 12

// Positions in a header (RFC 1035, 4.1.1).
const (
	flagsHigh      = 2 // QR, opcode, AA, TC, RD
	flagsLow       = 3 // RA, Z, AD, CD, rcode
	bitQR     byte = 1 << 7
	bitTC     byte = 1 << 1
	bitRD     byte = 1
)

// query is one message of a client on its way to an answer.
type query struct {
	raw           []byte
	msg           *dns.Msg // never nil after parse has said to go on; of other operations than QUERY only the header
	name          string   // to look up; "" if it can be no service's
	tcp           bool
	client, local netip.AddrPort
	origin        netip.AddrPort // TCP: where the client wanted to go; invalid if that is not known
	event         Event
}

// parse reads the query. done means that there is nothing to do but send answer, if there is one.
func (q *query) parse() (done bool, answer []byte) {
	q.event.TCP = q.tcp
	if len(q.raw) < headerBytes || q.raw[flagsHigh]&bitQR != 0 {
		return true, nil // nothing that could be answered, or an answer: two servers that answer answers never stop
	}
	opcode := int(q.raw[flagsHigh] >> 3 & 0xf)
	if opcode != dns.OpcodeQuery {
		q.msg = &dns.Msg{MsgHdr: dns.MsgHdr{Id: binary.BigEndian.Uint16(q.raw), Opcode: opcode}}
		q.event.Type = operation(opcode)
		return false, nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(q.raw); err != nil || len(m.Question) != 1 {
		return true, formatError(q.raw)
	}
	q.msg = m
	question := m.Question[0]
	q.event.Name, q.event.Type = question.Name, typeName(question.Qtype)
	if question.Qclass != dns.ClassINET {
		return false, nil
	}
	q.name, _ = lookupName(question.Name)
	if opt := m.IsEdns0(); opt != nil && opt.Version() != 0 {
		r := reply(m, dns.RcodeBadVers)
		out, err := pack(r, limit(m, q.tcp), nil)
		return err == nil, out
	}
	return false, nil
}

// typeName bounds what a client can make of labels: a type without a name has that of all such.
func typeName(t uint16) string {
	if name, ok := dns.TypeToString[t]; ok {
		return name
	}
	return "unknown"
}

func operation(opcode int) string {
	if name, ok := dns.OpcodeToString[opcode]; ok {
		return name
	}
	return "unknown"
}

// formatError answers what cannot be read with the little that can.
func formatError(raw []byte) []byte {
	out := make([]byte, headerBytes)
	copy(out, raw[:2])
	out[flagsHigh] = bitQR | raw[flagsHigh]&(0xf<<3|bitRD)
	out[flagsLow] = dns.RcodeFormatError
	return out
}

// question is what makes two queries the same, whoever asks.
type question struct {
	opcode      int
	name        string
	kind, class uint16
}

func (q *query) question() question {
	if len(q.msg.Question) == 0 {
		return question{opcode: q.msg.Opcode}
	}
	k := q.msg.Question[0]
	return question{opcode: q.msg.Opcode, name: strings.ToLower(k.Name), kind: k.Qtype, class: k.Qclass}
}

// answers reports whether b is an answer to q that was sent under id.
func (q *query) answers(b []byte, id uint16) bool {
	if len(b) < headerBytes || binary.BigEndian.Uint16(b) != id || b[flagsHigh]&bitQR == 0 ||
		int(b[flagsHigh]>>3&0xf) != q.msg.Opcode {
		return false
	}
	if q.msg.Opcode != dns.OpcodeQuery {
		return true
	}
	if count := binary.BigEndian.Uint16(b[4:]); count != 1 {
		// A server that could not read the question, or would not, need not repeat it.
		return count == 0 && b[flagsLow]&0xf != dns.RcodeSuccess && b[flagsLow]&0xf != dns.RcodeNameError
	}
	name, off, err := dns.UnpackDomainName(b, headerBytes)
	if err != nil || len(b) < off+4 {
		return false
	}
	k := q.msg.Question[0]
	return strings.EqualFold(name, k.Name) && binary.BigEndian.Uint16(b[off:]) == k.Qtype && binary.BigEndian.Uint16(b[off+2:]) == k.Qclass
}

// restore makes of an upstream's answer one for the client: with its id, in its size, and without a denial of a name that
// the mesh knows (RFC 8020: who is told that a name does not exist need not ask for its other types).
func (q *query) restore(b []byte) []byte {
	binary.BigEndian.PutUint16(b, q.msg.Id)
	if q.event.Known && b[flagsLow]&0xf == dns.RcodeNameError {
		b[flagsLow] &^= 0xf
	}
	if q.msg.Opcode != dns.OpcodeQuery || len(b) <= limit(q.msg, q.tcp) {
		return b
	}
	var m dns.Msg
	if m.Unpack(b) == nil {
		m.Compress = true
		if out, err := pack(&m, limit(q.msg, q.tcp), nil); err == nil {
			return out
		}
	}
	r := reply(q.msg, int(b[flagsLow]&0xf))
	r.Truncated = true
	out, err := r.Pack()
	if err != nil {
		return formatError(q.raw)
	}
	return out
}
