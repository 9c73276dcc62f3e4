// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: every rule computes in the first; a translation has the address there and the port in the second.
const (
	reg     = 1
	portReg = 2
)

// Offsets of header fields in bytes.
const (
	v4SourceOffset, v4DestinationOffset = 12, 16
	v6SourceOffset, v6DestinationOffset = 8, 24
	destinationPortOffset, portBytes    = 2, 2
)

var protocolNumber = map[Protocol]byte{TCP: unix.IPPROTO_TCP, UDP: unix.IPPROTO_UDP}

// portUnreachable is the ICMP code of each family.
var portUnreachable = map[family]uint8{ipv4: 3, ipv6: 4}

func (f family) number() byte {
	if f == ipv4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// encode translates a rule to the kernel's expressions; decode is its inverse.
func (r rule) encode() []expr.Any {
	var e []expr.Any
	if f := r.effectiveFamily(); f != anyFamily {
		e = append(e, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, equals(f.number()))
	}
	e = append(e, encodePrefix(r.source, v4SourceOffset, v6SourceOffset)...)
	e = append(e, encodePrefix(r.destination, v4DestinationOffset, v6DestinationOffset)...)
	if r.protocol != "" {
		e = append(e, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equals(protocolNumber[r.protocol]))
	}
	if r.port != 0 {
		e = append(e, &expr.Payload{
			DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: destinationPortOffset, Len: portBytes,
		}, equals(binary.BigEndian.AppendUint16(nil, r.port)...))
	}
	if r.oneIn != 0 {
		e = append(e, &expr.Numgen{Register: reg, Modulus: r.oneIn, Type: unix.NFT_NG_RANDOM}, equals(0, 0, 0, 0))
	}
	if r.count {
		e = append(e, &expr.Counter{})
	}
	return append(e, r.encodeAction()...)
}

func (r rule) encodeAction() []expr.Any {
	switch r.verb {
	case jump:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: r.target}}
	case goTo:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: r.target}}
	case drop:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	case leave:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	case masquerade:
		return []expr.Any{&expr.Masq{}}
	case reset:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	case reject:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: portUnreachable[r.effectiveFamily()]}}
	case dnat:
		return []expr.Any{
			&expr.Immediate{Register: reg, Data: r.to.Addr().AsSlice()},
			&expr.Immediate{Register: portReg, Data: binary.BigEndian.AppendUint16(nil, r.to.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(r.family.number()), RegAddrMin: reg, RegProtoMin: portReg},
		}
	}
	return nil
}

func encodePrefix(p netip.Prefix, v4Offset, v6Offset uint32) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	load := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: v4Offset, Len: 4}
	if p.Addr().Is6() {
		load.Offset, load.Len = v6Offset, 16
	}
	e := []expr.Any{load}
	if !p.IsSingleIP() {
		mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
		e = append(e, &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: load.Len, Mask: mask, Xor: make([]byte, load.Len)})
	}
	return append(e, equals(p.Addr().AsSlice()...))
}

func equals(data ...byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }

var hooks = map[string]*nftables.ChainHook{
	"prerouting":  nftables.ChainHookPrerouting,
	"forward":     nftables.ChainHookForward,
	"output":      nftables.ChainHookOutput,
	"postrouting": nftables.ChainHookPostrouting,
}
