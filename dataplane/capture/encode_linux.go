// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg is the one register that every rule computes in.
const reg = 1

// Offsets and lengths of header fields in bytes.
const (
	v4SourceOffset, v4DestinationOffset, v4AddrBytes = 12, 16, 4
	v6SourceOffset, v6DestinationOffset, v6AddrBytes = 8, 24, 16
	sourcePortOffset, destinationPortOffset          = 0, 2
	portBytes                                        = 2
)

// encode translates a planned rule to the kernel's expressions.
func (r nftRule) encode() []expr.Any {
	if r.jump != "" {
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: r.jump}}
	}
	var e []expr.Any
	if r.rule.Family != AnyFamily && !r.rule.namesAddress() {
		e = append(e, encodeFamily(r.rule.Family)...)
	}
	for _, m := range r.rule.Matches {
		e = append(e, encodeMatch(r.rule.Family, m)...)
	}
	e = append(e, &expr.Counter{})
	return append(e, encodeAction(r.rule.Action)...)
}

func encodeFamily(f Family) []expr.Any {
	number := byte(unix.NFPROTO_IPV4)
	if f == IPv6 {
		number = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, compare(false, []byte{number})}
}

func encodeMatch(f Family, m Match) []expr.Any {
	switch m.Field {
	case Source, Destination:
		p := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader}
		p.Offset, p.Len = addrPosition(f, m.Field)
		return append(encodeFamily(f), p, compare(m.Not, m.Addr.AsSlice()))
	case Protocol:
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, compare(m.Not, []byte{byte(m.Value)})}
	case SourcePort, DestinationPort:
		p := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: sourcePortOffset, Len: portBytes}
		if m.Field == DestinationPort {
			p.Offset = destinationPortOffset
		}
		return []expr.Any{p, compare(m.Not, bigEndian(m.Value))}
	case OutInterface:
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, m.Name)
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, compare(m.Not, name)}
	case Mark:
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, bits(m.Mask, 0), compare(m.Not, native(m.Value))}
	case ConnMark:
		return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, bits(m.Mask, 0), compare(m.Not, native(m.Value))}
	}
	return nil
}

func encodeAction(a Action) []expr.Any {
	switch a.Verb {
	case Accept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case Redirect:
		return []expr.Any{&expr.Immediate{Register: reg, Data: bigEndian(a.Value)}, &expr.Redir{RegisterProtoMin: reg}}
	case SetConnMark:
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
			bits(^a.Mask, a.Value),
			&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
		}
	case RestoreMark:
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
		}
	case SetZone:
		zone := binary.NativeEndian.AppendUint16(nil, uint16(a.Value))
		return []expr.Any{&expr.Immediate{Register: reg, Data: zone}, &expr.Ct{Key: expr.CtKeyZONE, Register: reg, SourceRegister: true}}
	}
	return nil
}

func addrPosition(f Family, field Field) (offset, length uint32) {
	switch {
	case f == IPv4 && field == Source:
		return v4SourceOffset, v4AddrBytes
	case f == IPv4:
		return v4DestinationOffset, v4AddrBytes
	case field == Source:
		return v6SourceOffset, v6AddrBytes
	}
	return v6DestinationOffset, v6AddrBytes
}

func compare(not bool, data []byte) *expr.Cmp {
	c := &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
	if not {
		c.Op = expr.CmpOpNeq
	}
	return c
}

// bits computes (register & mask) ^ xor on a mark.
func bits(mask, xor uint32) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(mask), Xor: native(xor)}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func bigEndian(port uint32) []byte { return binary.BigEndian.AppendUint16(nil, uint16(port)) }

// attachment is the base chain in the terms of the nftables package.
func (b base) attachment() (nftables.ChainType, *nftables.ChainHook, *nftables.ChainPriority) {
	number := nftables.ChainHookPrerouting
	if b.hook == output {
		number = nftables.ChainHookOutput
	}
	return nftables.ChainType(b.kind), number, nftables.ChainPriorityRef(nftables.ChainPriority(b.priority))
}
