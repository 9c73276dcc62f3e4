// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
	"github.com/ambientlab/ambientlab/topologies/nodenet/policy"
)

// inspect reads a namespace's network state. It needs no tool of the host.
func (s *site) inspect(ctx context.Context, t *lab.Target) (*lab.Inspection, error) {
	at, err := s.place(t)
	if err != nil {
		return nil, err
	}
	ns := at.ns
	var in lab.Inspection
	err = ns.Do(func() error {
		var errs []error
		for _, part := range []struct {
			text *string
			read func() (string, error)
		}{{&in.Links, linksText}, {&in.Routes, routesText}, {&in.Sockets, socketsText}} {
			text, err := part.read()
			*part.text = text
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", t, err)
	}
	captured, err := capture.Dump(ctx, ns)
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", t, err)
	}
	network, err := nodenet.Dump(ctx, ns)
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", t, err)
	}
	policies, err := policy.Dump(ctx, ns)
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", t, err)
	}
	in.Rules = captured + network + policies
	if in.Refused, err = policy.Refused(ctx, ns); err != nil {
		return nil, fmt.Errorf("inspect %s: %w", t, err)
	}
	return &in, nil
}

func linksText() (string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return "", fmt.Errorf("list links: %w", err)
	}
	var b strings.Builder
	for _, l := range links {
		a := l.Attrs()
		fmt.Fprintf(&b, "%d: %s: <%s> mtu %d state %s link/%s %s\n", a.Index, a.Name, a.Flags, a.MTU, a.OperState, l.Type(), a.HardwareAddr)
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return "", fmt.Errorf("list addresses of %s: %w", a.Name, err)
		}
		for _, addr := range addrs {
			fmt.Fprintf(&b, "    %s\n", addr.IPNet)
		}
		if a.Statistics != nil {
			fmt.Fprintf(&b, "    received %d packets %d bytes %d dropped, sent %d packets %d bytes %d dropped\n",
				a.Statistics.RxPackets, a.Statistics.RxBytes, a.Statistics.RxDropped, a.Statistics.TxPackets, a.Statistics.TxBytes, a.Statistics.TxDropped)
		}
	}
	return b.String(), nil
}

func routesText() (string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return "", fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var b strings.Builder
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return "", fmt.Errorf("list rules: %w", err)
		}
		for _, r := range rules {
			b.WriteString(ruleLine(r))
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return "", fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			b.WriteString(routeLine(r, names))
		}
	}
	return b.String(), nil
}

// ruleLine is a policy rule in the words of `ip rule`.
func ruleLine(r netlink.Rule) string {
	line := fmt.Sprintf("rule %d: from %s", max(r.Priority, 0), prefixOr(r.Src, "all"))
	if r.Dst != nil {
		line += " to " + r.Dst.String()
	}
	if r.Mark != 0 || r.Mask != nil {
		line += fmt.Sprintf(" fwmark %#x", r.Mark)
	}
	if r.Mask != nil {
		line += fmt.Sprintf("/%#x", *r.Mask)
	}
	return fmt.Sprintf("%s lookup %d\n", line, r.Table)
}

// routeLine is a route in the words of `ip route`.
func routeLine(r netlink.Route, links map[int]string) string {
	line := fmt.Sprintf("table %d: ", r.Table)
	if kind := routeKinds[r.Type]; kind != "" {
		line += kind + " "
	}
	line += prefixOr(r.Dst, "default")
	if r.Gw != nil {
		line += " via " + r.Gw.String()
	}
	if name := links[r.LinkIndex]; name != "" {
		line += " dev " + name
	}
	if r.Src != nil {
		line += " src " + r.Src.String()
	}
	if r.MTU > 0 {
		line += fmt.Sprintf(" mtu %d", r.MTU)
	}
	return line + "\n"
}

var routeKinds = map[int]string{
	unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_ANYCAST: "anycast", unix.RTN_MULTICAST: "multicast",
	unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit",
}

func prefixOr(p *net.IPNet, none string) string {
	if p == nil {
		return none
	}
	if ones, _ := p.Mask.Size(); ones == 0 {
		return none
	}
	return p.String()
}

var tcpStates = []string{
	"", "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSE", "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING", "NEW-SYN-RECV",
}

func socketsText() (string, error) {
	var lines []string
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		tcp, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return "", fmt.Errorf("list TCP sockets: %w", err)
		}
		udp, err := netlink.SocketDiagUDP(family)
		if err != nil {
			return "", fmt.Errorf("list UDP sockets: %w", err)
		}
		lines = append(append(lines, socketLines("tcp", tcp)...), socketLines("udp", udp)...)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

func socketLines(protocol string, socks []*netlink.Socket) []string {
	var lines []string
	for _, s := range socks {
		state := fmt.Sprint(s.State)
		if int(s.State) < len(tcpStates) {
			state = tcpStates[s.State]
		}
		lines = append(lines, fmt.Sprintf("%s %-12s %s %s uid %d queued %d/%d", protocol, state,
			hostPort(s.ID.Source, s.ID.SourcePort), hostPort(s.ID.Destination, s.ID.DestinationPort), s.UID, s.RQueue, s.WQueue))
	}
	return lines
}

func hostPort(ip net.IP, port uint16) string { return net.JoinHostPort(ip.String(), fmt.Sprint(port)) }
