// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// reg is the register in which every rule computes.
const reg = 1

// Header fields in bytes.
const (
	v4Bytes, v6Bytes                  = 4, 16
	destinationPort, portBytes        = 2, 2
	stateBytes                        = 4
	elementsAtOnce                    = 1000 // an attribute of netlink holds 64 KiB
	letIn                      uint32 = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
)

// addressOffset is where a header has its source and destination.
var addressOffset = map[family][]uint32{ipv4: {12, 16}, ipv6: {8, 24}}

var protocolNumber = map[corev1.Protocol]byte{
	corev1.ProtocolTCP: unix.IPPROTO_TCP, corev1.ProtocolUDP: unix.IPPROTO_UDP, corev1.ProtocolSCTP: unix.IPPROTO_SCTP,
}

func (f family) number() byte {
	if f == ipv4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// encode translates a rule to the kernel's expressions; decode is its inverse.
func (r rule) encode() []expr.Any {
	var e []expr.Any
	if r.established {
		e = append(e,
			&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
			&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: stateBytes, Mask: binaryutil.NativeEndian.PutUint32(letIn), Xor: make([]byte, stateBytes)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, stateBytes)})
	}
	switch {
	case r.addr.IsValid():
		e = append(append(e, loadAddress(familyOf(r.addr), r.end)...), equals(r.addr.AsSlice()...))
	case r.set != "":
		e = append(append(e, loadAddress(r.family, r.end)...), &expr.Lookup{SourceRegister: reg, SetName: r.set})
	}
	if r.protocol != "" {
		e = append(e, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equals(protocolNumber[r.protocol]))
	}
	if r.from != 0 {
		e = append(e, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: destinationPort, Len: portBytes})
		from, to := binary.BigEndian.AppendUint16(nil, r.from), binary.BigEndian.AppendUint16(nil, r.to)
		if r.from == r.to {
			e = append(e, equals(from...))
		} else {
			e = append(e, &expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: from, ToData: to})
		}
	}
	if r.count {
		e = append(e, &expr.Counter{})
	}
	verdict := map[verb]expr.VerdictKind{accept: expr.VerdictAccept, drop: expr.VerdictDrop, goTo: expr.VerdictGoto}[r.verb]
	return append(e, &expr.Verdict{Kind: verdict, Chain: r.target})
}

func loadAddress(f family, at end) []expr.Any {
	length := uint32(v4Bytes)
	if f == ipv6 {
		length = v6Bytes
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, equals(f.number()),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: addressOffset[f][at], Len: length},
	}
}

func equals(data ...byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }

// userData is a rule's comment, as nft writes it.
func (r rule) userData() []byte {
	if r.note == "" {
		return nil
	}
	return userdata.AppendString(nil, userdata.TypeComment, r.note)
}

// kernel is the set without its elements; the number has to be unique within a transaction.
func (s set) kernel(number int) *nftables.Set {
	kind := nftables.TypeIPAddr
	if s.family == ipv6 {
		kind = nftables.TypeIP6Addr
	}
	return &nftables.Set{Table: table(), ID: uint32(number), Name: s.name, Interval: true, KeyType: kind}
}

// elements are the beginnings of the spans and of what follows them; behind the last address nothing does.
func (s set) elements() []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range s.spans {
		out = append(out, nftables.SetElement{Key: e.from.AsSlice()})
		if next := e.to.Next(); next.IsValid() {
			out = append(out, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}
