// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"net/netip"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// builder writes each rule once per family where it names an address, and once for all families where it does not.
type builder struct {
	families []Family
	probes   ProbeSource
}

// any is the family of rules that name no address: both, or the only one that is on.
func (b builder) any() Family {
	if len(b.families) == 1 {
		return b.families[0]
	}
	return AnyFamily
}

func (b builder) each(rule func(f Family) Rule) []Rule {
	var rules []Rule
	for _, f := range b.families {
		r := rule(f)
		r.Family = f
		rules = append(rules, r)
	}
	return rules
}

func (b builder) natPrerouting() []Rule {
	rules := b.each(func(f Family) Rule {
		return Rule{Matches: []Match{{Field: Source, Addr: b.probes.Of(f)}, tcp}, Action: Action{Verb: Accept}}
	})
	return append(rules, b.each(func(f Family) Rule {
		return Rule{
			Matches: []Match{notLoopback(f), tcp, {Field: DestinationPort, Not: true, Value: uint32(mesh.PortHBONE)}, notProxy},
			Action:  Action{Verb: Redirect, Value: uint32(mesh.PortPlaintext)},
		}
	})...)
}

// natOutput keeps upstream's order: probes' replies, DNS, the proxy's spoofed connections, loopback, then everything else.
func (b builder) natOutput(o Options) []Rule {
	rules := b.each(func(f Family) Rule {
		return Rule{Matches: []Match{{Field: Destination, Addr: b.probes.Of(f)}, tcp}, Action: Action{Verb: Accept}}
	})
	if o.DNS {
		toProxy := Action{Verb: Redirect, Value: uint32(mesh.PortDNS)}
		rules = append(rules, Rule{
			Family:  b.any(),
			Matches: []Match{{Field: OutInterface, Not: true, Name: "lo"}, udp, {Field: DestinationPort, Value: portDNS}, notProxy},
			Action:  toProxy,
		})
		rules = append(rules, b.each(func(f Family) Rule {
			return Rule{Matches: []Match{notLoopback(f), tcp, {Field: DestinationPort, Value: portDNS}, notProxy}, Action: toProxy}
		})...)
	}
	rules = append(rules, Rule{
		Family:  b.any(),
		Matches: []Match{tcp, {Field: Mark, Value: mesh.MarkConn, Mask: mesh.MarkMask}},
		Action:  Action{Verb: Accept},
	})
	rules = append(rules, b.each(func(f Family) Rule {
		return Rule{Matches: []Match{notLoopback(f), {Field: OutInterface, Name: "lo"}}, Action: Action{Verb: Accept}}
	})...)
	return append(rules, b.each(func(f Family) Rule {
		return Rule{
			Matches: []Match{notLoopback(f), tcp, notProxy},
			Action:  Action{Verb: Redirect, Value: uint32(mesh.PortOutbound)},
		}
	})...)
}

// mangle marks the connections that the proxy opens, and gives the mark to the application's replies, so that the policy
// route brings them back even though their destination is a stranger's address.
func (b builder) mangle() Table {
	return Table{
		Kind: Mangle,
		Prerouting: []Rule{{
			Family:  b.any(),
			Matches: []Match{byProxy},
			Action:  Action{Verb: SetConnMark, Value: mesh.MarkConn, Mask: mesh.MarkMask},
		}},
		Output: []Rule{{
			Family:  b.any(),
			Matches: []Match{{Field: ConnMark, Value: mesh.MarkConn, Mask: mesh.MarkMask}},
			Action:  Action{Verb: RestoreMark},
		}},
	}
}

func (b builder) raw() Table {
	zone := Action{Verb: SetZone, Value: zoneProxy}
	return Table{
		Kind:       Raw,
		Prerouting: []Rule{{Family: b.any(), Matches: []Match{udp, {Field: SourcePort, Value: portDNS}, notProxy}, Action: zone}},
		Output:     []Rule{{Family: b.any(), Matches: []Match{udp, {Field: DestinationPort, Value: portDNS}, byProxy}, Action: zone}},
	}
}

var (
	tcp      = Match{Field: Protocol, Value: protoTCP}
	udp      = Match{Field: Protocol, Value: protoUDP}
	byProxy  = Match{Field: Mark, Value: mesh.MarkProxy, Mask: mesh.MarkMask}
	notProxy = Match{Field: Mark, Not: true, Value: mesh.MarkProxy, Mask: mesh.MarkMask}
)

func notLoopback(f Family) Match {
	if f == IPv4 {
		return Match{Field: Destination, Not: true, Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return Match{Field: Destination, Not: true, Addr: netip.IPv6Loopback()}
}
