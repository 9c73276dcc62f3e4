// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// decode is encode's inverse. What it does not know becomes a foreign rule, which equals no planned one.
func decode(exprs []expr.Any) nftRule {
	d := decoder{rest: exprs}
	for len(d.rest) > 0 {
		if !d.step() {
			return nftRule{foreign: describe(exprs)}
		}
	}
	return d.out
}

// decoder consumes expressions from the front of rest.
type decoder struct {
	rest []expr.Any
	out  nftRule
}

// take consumes the next expression if it is of type T.
func take[T expr.Any](d *decoder) (t T, ok bool) {
	if len(d.rest) == 0 {
		return t, false
	}
	if t, ok = d.rest[0].(T); ok {
		d.rest = d.rest[1:]
	}
	return t, ok
}

// step consumes one match, the counter or the action.
func (d *decoder) step() bool {
	switch d.rest[0].(type) {
	case *expr.Meta:
		return d.meta()
	case *expr.Payload:
		return d.payload()
	case *expr.Ct:
		return d.conntrack()
	case *expr.Immediate:
		return d.immediate()
	case *expr.Counter:
		c, _ := take[*expr.Counter](d)
		d.out.packets, d.out.bytes = c.Packets, c.Bytes
		return true
	case *expr.Verdict:
		v, _ := take[*expr.Verdict](d)
		if v.Kind == expr.VerdictJump {
			d.out.jump = v.Chain
			return true
		}
		return v.Kind == expr.VerdictAccept && d.act(Action{Verb: Accept})
	}
	return false
}

func (d *decoder) act(a Action) bool {
	d.out.rule.Action = a
	return true
}

func (d *decoder) match(m Match) bool {
	d.out.rule.Matches = append(d.out.rule.Matches, m)
	return true
}

// cmp consumes a comparison of the register.
func (d *decoder) cmp(length int) (data []byte, not, ok bool) {
	c, ok := take[*expr.Cmp](d)
	if !ok || c.Register != reg || len(c.Data) != length || (c.Op != expr.CmpOpEq && c.Op != expr.CmpOpNeq) {
		return nil, false, false
	}
	return c.Data, c.Op == expr.CmpOpNeq, true
}

// masked consumes a comparison of the register under a mask.
func (d *decoder) masked(f Field) bool {
	b, ok := take[*expr.Bitwise](d)
	if !ok || len(b.Mask) != 4 || !bytes.Equal(b.Xor, make([]byte, 4)) {
		return false
	}
	data, not, ok := d.cmp(4)
	return ok && d.match(Match{
		Field: f, Not: not, Value: binary.NativeEndian.Uint32(data), Mask: binary.NativeEndian.Uint32(b.Mask),
	})
}

func (d *decoder) meta() bool {
	m, _ := take[*expr.Meta](d)
	if m.SourceRegister || m.Register != reg {
		return false
	}
	switch m.Key {
	case expr.MetaKeyNFPROTO:
		data, not, ok := d.cmp(1)
		if !ok || not {
			return false
		}
		d.out.rule.Family = map[byte]Family{unix.NFPROTO_IPV4: IPv4, unix.NFPROTO_IPV6: IPv6}[data[0]]
		return d.out.rule.Family != AnyFamily
	case expr.MetaKeyL4PROTO:
		data, not, ok := d.cmp(1)
		return ok && d.match(Match{Field: Protocol, Not: not, Value: uint32(data[0])})
	case expr.MetaKeyOIFNAME:
		data, not, ok := d.cmp(unix.IFNAMSIZ)
		return ok && d.match(Match{Field: OutInterface, Not: not, Name: string(bytes.TrimRight(data, "\x00"))})
	case expr.MetaKeyMARK:
		return d.masked(Mark)
	}
	return false
}

func (d *decoder) payload() bool {
	p, _ := take[*expr.Payload](d)
	if p.DestRegister != reg {
		return false
	}
	data, not, ok := d.cmp(int(p.Len))
	if !ok {
		return false
	}
	if p.Base == expr.PayloadBaseTransportHeader && p.Len == portBytes {
		f, ok := map[uint32]Field{sourcePortOffset: SourcePort, destinationPortOffset: DestinationPort}[p.Offset]
		return ok && d.match(Match{Field: f, Not: not, Value: uint32(binary.BigEndian.Uint16(data))})
	}
	for _, f := range []Field{Source, Destination} {
		offset, length := addrPosition(d.out.rule.Family, f)
		if d.out.rule.Family != AnyFamily && p.Base == expr.PayloadBaseNetworkHeader && p.Offset == offset && p.Len == length {
			a, _ := netip.AddrFromSlice(data)
			return d.match(Match{Field: f, Not: not, Addr: a})
		}
	}
	return false
}

// conntrack consumes a match on the connection's mark, or an action that sets or restores it. The nftables package does not
// decode the register that a ct expression reads from; it is the one that has register 0.
func (d *decoder) conntrack() bool {
	load, _ := take[*expr.Ct](d)
	if load.Key != expr.CtKeyMARK || load.Register != reg {
		return false
	}
	if set, ok := take[*expr.Meta](d); ok {
		return set.SourceRegister && set.Key == expr.MetaKeyMARK && d.act(Action{Verb: RestoreMark})
	}
	if len(d.rest) < 2 {
		return false
	}
	set, isSet := d.rest[1].(*expr.Ct)
	if !isSet {
		return d.masked(ConnMark)
	}
	b, ok := take[*expr.Bitwise](d)
	if !ok || len(b.Mask) != 4 || len(b.Xor) != 4 || set.Key != expr.CtKeyMARK || set.Register != 0 {
		return false
	}
	d.rest = d.rest[1:]
	return d.act(Action{Verb: SetConnMark, Value: binary.NativeEndian.Uint32(b.Xor), Mask: ^binary.NativeEndian.Uint32(b.Mask)})
}

func (d *decoder) immediate() bool {
	i, _ := take[*expr.Immediate](d)
	if i.Register != reg || len(i.Data) != 2 {
		return false
	}
	if r, ok := take[*expr.Redir](d); ok {
		return r.RegisterProtoMin == reg && d.act(Action{Verb: Redirect, Value: uint32(binary.BigEndian.Uint16(i.Data))})
	}
	c, ok := take[*expr.Ct](d)
	return ok && c.Key == expr.CtKeyZONE && c.Register == 0 &&
		d.act(Action{Verb: SetZone, Value: uint32(binary.NativeEndian.Uint16(i.Data))})
}

// describe prints expressions that no plan contains, without the counters, so that one rule always reads the same.
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

// decodeBase is attachment's inverse; nil for a chain that is only jumped to.
func decodeBase(c *nftables.Chain) *base {
	if c.Hooknum == nil || c.Priority == nil {
		return nil
	}
	h := hook(fmt.Sprintf("hook %d", *c.Hooknum))
	switch *c.Hooknum {
	case *nftables.ChainHookPrerouting:
		h = prerouting
	case *nftables.ChainHookOutput:
		h = output
	}
	drop := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
	return &base{kind: string(c.Type), hook: h, priority: int(*c.Priority), drop: drop}
}
