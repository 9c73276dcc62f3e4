// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// decode reads a rule that encode wrote, and what it has counted. Anything else becomes a foreign rule, which equals no planned one.
func decode(k *nftables.Rule) (rule, count) {
	d := decoder{rest: k.Exprs}
	for len(d.rest) > 0 {
		if !d.step() {
			return rule{foreign: describe(k.Exprs)}, count{}
		}
	}
	d.out.note, _ = userdata.GetString(k.UserData, userdata.TypeComment)
	return d.out, d.counted
}

type decoder struct {
	rest    []expr.Any
	out     rule
	counted count
}

// take removes the next expression if it is of that type.
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
	switch e := d.rest[0].(type) {
	case *expr.Ct:
		return d.state()
	case *expr.Meta:
		return d.meta()
	case *expr.Payload:
		return d.port()
	case *expr.Counter:
		d.rest = d.rest[1:]
		d.out.count, d.counted = true, count{e.Packets, e.Bytes}
		return true
	case *expr.Verdict:
		d.rest = d.rest[1:]
		v, ok := map[expr.VerdictKind]verb{expr.VerdictAccept: accept, expr.VerdictDrop: drop, expr.VerdictGoto: goTo}[e.Kind]
		d.out.verb, d.out.target = v, e.Chain
		return ok && len(d.rest) == 0
	}
	return false
}

func (d *decoder) state() bool {
	ct, _ := take[*expr.Ct](d)
	mask, ok := take[*expr.Bitwise](d)
	if !ok || ct.Key != expr.CtKeySTATE || !bytes.Equal(mask.Mask, binaryutil.NativeEndian.PutUint32(letIn)) {
		return false
	}
	is, ok := take[*expr.Cmp](d)
	d.out.established = true
	return ok && is.Op == expr.CmpOpNeq && bytes.Equal(is.Data, make([]byte, stateBytes))
}

func (d *decoder) meta() bool {
	m, _ := take[*expr.Meta](d)
	data, ok := d.equals(1)
	if !ok {
		return false
	}
	switch m.Key {
	case expr.MetaKeyNFPROTO:
		for _, f := range families {
			if data[0] == f.number() {
				return d.address(f)
			}
		}
	case expr.MetaKeyL4PROTO:
		for name, number := range protocolNumber {
			if data[0] == number {
				d.out.protocol = name
				return true
			}
		}
	}
	return false
}

func (d *decoder) address(f family) bool {
	p, ok := take[*expr.Payload](d)
	if !ok || p.Base != expr.PayloadBaseNetworkHeader {
		return false
	}
	at := slices.Index(addressOffset[f], p.Offset)
	if at < 0 {
		return false
	}
	d.out.end = []end{fromEnd, toEnd}[at]
	if l, ok := take[*expr.Lookup](d); ok {
		d.out.family, d.out.set = f, l.SetName
		return !l.Invert && !l.IsDestRegSet
	}
	data, ok := d.equals(int(p.Len))
	if !ok {
		return false
	}
	d.out.addr, ok = netip.AddrFromSlice(data)
	return ok
}

func (d *decoder) port() bool {
	p, _ := take[*expr.Payload](d)
	if p.Base != expr.PayloadBaseTransportHeader || p.Offset != destinationPort || p.Len != portBytes {
		return false
	}
	if r, ok := take[*expr.Range](d); ok {
		if r.Op != expr.CmpOpEq || len(r.FromData) != portBytes || len(r.ToData) != portBytes {
			return false
		}
		d.out.from, d.out.to = binary.BigEndian.Uint16(r.FromData), binary.BigEndian.Uint16(r.ToData)
		return true
	}
	data, ok := d.equals(portBytes)
	if !ok {
		return false
	}
	d.out.from = binary.BigEndian.Uint16(data)
	d.out.to = d.out.from
	return true
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

// decodeSpans is the inverse of set.elements; what it cannot read is no span.
func decodeSpans(elements []nftables.SetElement) []span {
	elements = slices.SortedFunc(slices.Values(elements), func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	var out []span
	for i, e := range elements {
		from, ok := netip.AddrFromSlice(e.Key)
		if !ok || e.IntervalEnd {
			continue
		}
		s := spanOf(netip.PrefixFrom(from, 0))
		s.from = from
		if i+1 < len(elements) {
			if next, ok := netip.AddrFromSlice(elements[i+1].Key); ok {
				s.to = next.Prev()
			}
		}
		out = append(out, s)
	}
	return out
}
