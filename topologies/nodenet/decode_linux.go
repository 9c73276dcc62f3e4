// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// decode reads a rule that encode wrote. Anything else becomes a foreign rule, which equals no planned one.
func decode(exprs []expr.Any) rule {
	d := decoder{rest: exprs}
	for len(d.rest) > 0 {
		if !d.step() {
			return rule{foreign: describe(exprs)}
		}
	}
	// An address says the family too; the plan then leaves it out.
	if d.out.source.IsValid() || d.out.destination.IsValid() {
		d.out.family = anyFamily
	}
	return d.out
}

type decoder struct {
	rest []expr.Any
	out  rule
}

func take[T expr.Any](d *decoder) (t T, ok bool) {
	if len(d.rest) == 0 {
		return t, false
	}
	if t, ok = d.rest[0].(T); ok {
		d.rest = d.rest[1:]
	}
	return t, ok
}

func (d *decoder) equals(length int) ([]byte, bool) {
	c, ok := take[*expr.Cmp](d)
	if !ok || c.Op != expr.CmpOpEq || c.Register != reg || len(c.Data) != length {
		return nil, false
	}
	return c.Data, true
}

func (d *decoder) step() bool {
	switch first := d.rest[0].(type) {
	case *expr.Meta:
		return d.meta()
	case *expr.Payload:
		return d.payload()
	case *expr.Immediate:
		return d.nat()
	default:
		d.rest = d.rest[1:]
		return d.single(first)
	}
}

// single reads what one expression says alone, and the random choice.
func (d *decoder) single(e expr.Any) bool {
	switch e := e.(type) {
	case *expr.Numgen:
		data, ok := d.equals(4)
		d.out.oneIn = e.Modulus
		return ok && e.Type == unix.NFT_NG_RANDOM && e.Offset == 0 && bytes.Equal(data, make([]byte, 4))
	case *expr.Counter:
		d.out.count = true
	case *expr.Masq:
		d.out.verb = masquerade
		return *e == expr.Masq{}
	case *expr.Reject:
		d.out.verb = reject
		if e.Type == unix.NFT_REJECT_TCP_RST {
			d.out.verb = reset
			return true
		}
		code, ok := portUnreachable[d.out.family]
		return ok && e.Type == unix.NFT_REJECT_ICMP_UNREACH && e.Code == code
	case *expr.Verdict:
		v, ok := map[expr.VerdictKind]verb{expr.VerdictJump: jump, expr.VerdictGoto: goTo, expr.VerdictDrop: drop, expr.VerdictReturn: leave}[e.Kind]
		d.out.verb, d.out.target = v, e.Chain
		return ok
	default:
		return false
	}
	return true
}

func (d *decoder) meta() bool {
	m, _ := take[*expr.Meta](d)
	data, ok := d.equals(1)
	if !ok || m.Register != reg {
		return false
	}
	switch m.Key {
	case expr.MetaKeyNFPROTO:
		d.out.family = map[byte]family{unix.NFPROTO_IPV4: ipv4, unix.NFPROTO_IPV6: ipv6}[data[0]]
		return d.out.family != anyFamily
	case expr.MetaKeyL4PROTO:
		d.out.protocol = map[byte]Protocol{unix.IPPROTO_TCP: TCP, unix.IPPROTO_UDP: UDP}[data[0]]
		return d.out.protocol != ""
	}
	return false
}

func (d *decoder) payload() bool {
	p, _ := take[*expr.Payload](d)
	if p.DestRegister != reg {
		return false
	}
	if p.Base == expr.PayloadBaseTransportHeader {
		data, ok := d.equals(portBytes)
		if !ok || p.Offset != destinationPortOffset || p.Len != portBytes {
			return false
		}
		d.out.port = binary.BigEndian.Uint16(data)
		return true
	}
	bits := int(p.Len) * 8
	if b, ok := take[*expr.Bitwise](d); ok {
		bits, _ = net.IPMask(b.Mask).Size()
	}
	data, ok := d.equals(int(p.Len))
	addr, isAddr := netip.AddrFromSlice(data)
	if !ok || !isAddr || p.Base != expr.PayloadBaseNetworkHeader {
		return false
	}
	prefix := netip.PrefixFrom(addr, bits)
	switch {
	case addr.Is4() && p.Offset == v4SourceOffset, addr.Is6() && p.Offset == v6SourceOffset:
		d.out.source = prefix
	case addr.Is4() && p.Offset == v4DestinationOffset, addr.Is6() && p.Offset == v6DestinationOffset:
		d.out.destination = prefix
	default:
		return false
	}
	return true
}

func (d *decoder) nat() bool {
	addr, _ := take[*expr.Immediate](d)
	port, ok := take[*expr.Immediate](d)
	n, isNAT := take[*expr.NAT](d)
	a, isAddr := netip.AddrFromSlice(addr.Data)
	if !ok || !isNAT || !isAddr || len(port.Data) != portBytes || addr.Register != reg || port.Register != portReg {
		return false
	}
	d.out.verb, d.out.to = dnat, netip.AddrPortFrom(a, binary.BigEndian.Uint16(port.Data))
	return n.Type == expr.NATTypeDestNAT && n.RegAddrMin == reg && n.RegProtoMin == portReg &&
		!n.Random && !n.FullyRandom && !n.Persistent && !n.Prefix
}

func describe(exprs []expr.Any) string {
	var words []string
	for _, e := range exprs {
		if _, counter := e.(*expr.Counter); counter {
			e = &expr.Counter{}
		}
		words = append(words, fmt.Sprintf("%T%+v", e, e))
	}
	return strings.ReplaceAll(strings.Join(words, " "), "*expr.", "")
}

// decodeBase is nil for a chain that is only jumped to.
func decodeBase(c *nftables.Chain) *base {
	if c.Hooknum == nil || c.Priority == nil {
		return nil
	}
	b := base{kind: string(c.Type), hook: fmt.Sprintf("hook %d", *c.Hooknum), priority: int(*c.Priority)}
	for name, number := range hooks {
		if *number == *c.Hooknum {
			b.hook = name
		}
	}
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		b.kind += " (drops)"
	}
	return &b
}
