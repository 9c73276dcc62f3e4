// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

const loopbackName = "lo"

// routingText is what routing shows for a family's rule and route when they are in place.
func routingText(f Family) []string {
	return []string{
		fmt.Sprintf("rule %s %d: fwmark %#x/%#x lookup %d", f, mesh.RulePriority, mesh.MarkConn, mesh.MarkMask, mesh.RouteTable),
		fmt.Sprintf("route %s table %d: local default dev lo", f, mesh.RouteTable),
	}
}

// possible drops the families that the namespace of the calling thread does not have: no IPv6 in the kernel, or disabled on
// the loopback link.
func possible(families []Family) ([]Family, error) {
	var out []Family
	for _, f := range families {
		if f == IPv6 {
			b, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
			if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(b)) == "1" {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read whether IPv6 is on: %w", err)
			}
		}
		out = append(out, f)
	}
	return out, nil
}

// readRouting lists the policy rules and routes of capture in the namespace of the calling thread, as routingText prints them.
func readRouting() ([]string, error) {
	var lines []string
	for _, f := range []Family{IPv4, IPv6} {
		rules, routes, err := installedRouting(f)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			mask := uint32(0)
			if r.Mask != nil {
				mask = *r.Mask
			}
			line := fmt.Sprintf("rule %s %d: fwmark %#x/%#x lookup %d", f, r.Priority, r.Mark, mask, r.Table)
			if r.Invert || r.Src != nil || r.Dst != nil || r.IifName != "" || r.OifName != "" {
				line += " " + r.String()
			}
			lines = append(lines, line)
		}
		for range routes {
			lines = append(lines, routingText(f)[1])
		}
	}
	return lines, nil
}

// installedRouting finds what capture owns: rules of its priority that select its table, and its route there.
func installedRouting(f Family) ([]netlink.Rule, []netlink.Route, error) {
	rules, err := netlink.RuleListFiltered(f.number(), &netlink.Rule{Priority: mesh.RulePriority, Table: mesh.RouteTable},
		netlink.RT_FILTER_PRIORITY|netlink.RT_FILTER_TABLE)
	if f == IPv6 && errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list %s policy rules: %w", f, err)
	}
	// The filter stops at the first criterion that a rule fails, so check both again.
	rules = slices.DeleteFunc(rules, func(r netlink.Rule) bool {
		return r.Priority != mesh.RulePriority || r.Table != mesh.RouteTable
	})
	routes, err := netlink.RouteListFiltered(f.number(), &netlink.Route{Table: mesh.RouteTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, nil, fmt.Errorf("list %s routes of table %d: %w", f, mesh.RouteTable, err)
	}
	lo, err := netlink.LinkByName(loopbackName)
	if err != nil {
		return nil, nil, fmt.Errorf("find loopback link: %w", err)
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
		return r.Type != unix.RTN_LOCAL || r.LinkIndex != lo.Attrs().Index || !isDefault(r.Dst)
	})
	return rules, routes, nil
}

func (f Family) number() int {
	if f == IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func isDefault(n *net.IPNet) bool {
	if n == nil {
		return true
	}
	ones, _ := n.Mask.Size()
	return ones == 0 && n.IP.IsUnspecified()
}

// writeRouting makes the namespace's rules and routes those of families.
func writeRouting(families []Family) error {
	for _, f := range []Family{IPv4, IPv6} {
		want := slices.Contains(families, f)
		rules, routes, err := installedRouting(f)
		if err != nil {
			return err
		}
		if err := fixRule(f, rules, want); err != nil {
			return err
		}
		if err := fixRoute(f, routes, want); err != nil {
			return err
		}
	}
	return nil
}

func fixRule(f Family, rules []netlink.Rule, want bool) error {
	mask := mesh.MarkMask
	for _, r := range rules {
		right := r.Mark == mesh.MarkConn && r.Mask != nil && *r.Mask == mask && !r.Invert && r.Src == nil && r.Dst == nil
		if right && want {
			want = false
			continue
		}
		if err := netlink.RuleDel(&r); err != nil {
			return fmt.Errorf("delete %s policy rule %d: %w", f, r.Priority, err)
		}
	}
	if !want {
		return nil
	}
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = f.number(), mesh.RulePriority, mesh.RouteTable
	r.Mark, r.Mask = mesh.MarkConn, &mask
	if err := netlink.RuleAdd(r); err != nil {
		return fmt.Errorf("add %s policy rule %d: %w", f, r.Priority, err)
	}
	return nil
}

func fixRoute(f Family, routes []netlink.Route, want bool) error {
	for _, r := range routes {
		if want {
			want = false
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("delete %s route of table %d: %w", f, mesh.RouteTable, err)
		}
	}
	if !want {
		return nil
	}
	lo, err := netlink.LinkByName(loopbackName)
	if err != nil {
		return fmt.Errorf("find loopback link: %w", err)
	}
	everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if f == IPv6 {
		everything = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	err = netlink.RouteAdd(&netlink.Route{
		Family: f.number(), Table: mesh.RouteTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Dst: everything, LinkIndex: lo.Attrs().Index,
	})
	if errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("add %s route of table %d: the loopback link is down: %w", f, mesh.RouteTable, err)
	}
	if err != nil {
		return fmt.Errorf("add %s route of table %d: %w", f, mesh.RouteTable, err)
	}
	return nil
}
