// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

const (
	// ttl is how long an answer may be kept, in seconds; upstream's.
	ttl = 30
	// ownPayload is the largest datagram that we ask for: it passes everywhere without fragments.
	ownPayload = 1232
	// maxUDP is the largest answer that fits into a datagram of either family.
	maxUDP = 65535 - 48
)

// answerKnown makes the answer for a name of the mesh. q has one question, for A or AAAA.
func (z *Zone) answerKnown(n Names, f found, q *dns.Msg) *dns.Msg {
	r := reply(q, dns.RcodeSuccess)
	r.Authoritative = true
	question := q.Question[0]
	v6 := question.Qtype == dns.TypeAAAA
	var few [4]netip.Addr
	addrs := z.addresses(n, f, v6, few[:0])
	if len(addrs) == 0 {
		return r
	}
	owner := question.Name
	r.Answer = make([]dns.RR, 0, len(addrs)+1)
	if f.alias > 0 {
		real := question.Name[:f.alias] + "."
		r.Answer = append(r.Answer, &dns.CNAME{Hdr: header(owner, dns.TypeCNAME), Target: real})
		owner = real
	}
	for _, a := range addrs {
		if v6 {
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: a.AsSlice()})
		} else {
			r.Answer = append(r.Answer, &dns.A{Hdr: header(owner, dns.TypeA), A: a.AsSlice()})
		}
	}
	return r
}

func header(owner string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// reply is an answer without content: the question as it was asked, and EDNS if it was asked with (RFC 6891, 6.1.1).
func reply(q *dns.Msg, rcode int) *dns.Msg {
	r := &dns.Msg{MsgHdr: dns.MsgHdr{
		Id: q.Id, Response: true, Opcode: q.Opcode, RecursionDesired: q.RecursionDesired, RecursionAvailable: true,
		CheckingDisabled: q.CheckingDisabled, Rcode: rcode,
	}, Question: q.Question, Compress: true}
	if opt := q.IsEdns0(); opt != nil {
		r.SetEdns0(ownPayload, opt.Do())
	}
	return r
}

// failed is an answer that says why there is none, to those who can read it (RFC 8914).
func failed(q *dns.Msg, rcode int, why error) *dns.Msg {
	r := reply(q, rcode)
	if opt := r.IsEdns0(); opt != nil && why != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: extended(why), ExtraText: why.Error()})
	}
	return r
}

// limit is how large an answer the client takes.
func limit(q *dns.Msg, tcp bool) int {
	if tcp {
		return dns.MaxMsgSize
	}
	if opt := q.IsEdns0(); opt != nil {
		return min(max(dns.MinMsgSize, int(opt.UDPSize())), maxUDP)
	}
	return dns.MinMsgSize
}

// pack writes r into buf, cut to what the client takes and marked so if it had to be.
func pack(r *dns.Msg, size int, buf []byte) ([]byte, error) {
	r.Truncate(size)
	return r.PackBuffer(buf)
}

// lookupName is a question's name as it is looked up. ok is false for names that no service can have: with escapes, or the root.
func lookupName(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	if name == "" || strings.IndexByte(name, '\\') >= 0 {
		return "", false
	}
	return strings.ToLower(name), true
}

// isAddress reports whether a question is one for addresses.
func isAddress(q dns.Question) bool {
	return q.Qclass == dns.ClassINET && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA)
}
