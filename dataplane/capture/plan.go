// SPDX-License-Identifier: Apache-2.0

package capture

import "net/netip"

// Family is an address family; the zero value means both.
type Family uint8

// Address families.
const (
	AnyFamily Family = iota
	IPv4
	IPv6
)

func (f Family) String() string {
	switch f {
	case IPv4:
		return "ipv4"
	case IPv6:
		return "ipv6"
	}
	return "any"
}

// Options choose what a pod's plan contains. A family that is off is left untouched.
type Options struct {
	IPv4, IPv6 bool
	// DNS sends the application's DNS queries to the proxy's port 15053.
	DNS bool
	// BypassInbound leaves inbound connections alone: the pod is an ingress that is called directly.
	BypassInbound bool
	// Probes are the source addresses of kubelet's probes, which pass.
	Probes ProbeSource
}

// Plan is what capture installs in one pod's namespace.
type Plan struct {
	// Tables in the order in which they are created.
	Tables []Table
	// Routed are the families whose packets marked mesh.MarkConn are delivered locally, by way of mesh.RouteTable.
	Routed []Family
}

// Kind is a class of rules that the kernel runs at one point of a packet's path.
type Kind string

// Kinds, named like the tables of iptables.
const (
	NAT    Kind = "nat"
	Mangle Kind = "mangle"
	Raw    Kind = "raw"
)

// Table holds the rules of one kind: for packets that enter the namespace and for those that its processes send.
type Table struct {
	Kind       Kind
	Prerouting []Rule
	Output     []Rule
}

// Rule applies Action to packets of Family that fulfil every match, and counts them.
type Rule struct {
	Family  Family
	Matches []Match
	Action  Action
}

// Field is the property of a packet that a Match looks at.
type Field uint8

// Fields.
const (
	Source Field = iota + 1
	Destination
	Protocol
	SourcePort
	DestinationPort
	Mark
	ConnMark
	OutInterface
)

// Match compares one field. Addr serves addresses, Name interfaces, Value and Mask numbers.
type Match struct {
	Field Field
	Not   bool
	Addr  netip.Addr
	Name  string
	Value uint32
	Mask  uint32
}

// Verb is what a rule does with a packet.
type Verb uint8

// Verbs.
const (
	// Accept ends the evaluation of the table.
	Accept Verb = iota + 1
	// Redirect sends the connection to local port Value.
	Redirect
	// SetConnMark sets the bits Mask of the connection's mark to Value.
	SetConnMark
	// RestoreMark copies the connection's mark to the packet.
	RestoreMark
	// SetZone puts the packet's connection into conntrack zone Value.
	SetZone
)

// Action is a verb with its operands.
type Action struct {
	Verb  Verb
	Value uint32
	Mask  uint32
}

// IP protocol numbers.
const (
	protoTCP = 6
	protoUDP = 17
)

const (
	portDNS = 53
	// zoneProxy keeps the proxy's own DNS queries from colliding in conntrack with those of the application that it repeats.
	zoneProxy = 1
)

// NewPlan computes the plan for o.
func NewPlan(o Options) Plan {
	var p Plan
	if o.IPv4 {
		p.Routed = append(p.Routed, IPv4)
	}
	if o.IPv6 {
		p.Routed = append(p.Routed, IPv6)
	}
	if len(p.Routed) == 0 {
		return Plan{}
	}
	b := builder{families: p.Routed, probes: o.Probes}
	nat := Table{Kind: NAT, Output: b.natOutput(o)}
	if !o.BypassInbound {
		nat.Prerouting = b.natPrerouting()
	}
	p.Tables = append(p.Tables, nat, b.mangle())
	if o.DNS {
		p.Tables = append(p.Tables, b.raw())
	}
	return p
}
