// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"strings"
)

// iptablesChain is the chain that a hook's rules stand in, and the base chain that jumps to it.
var iptablesChain = map[hook]struct{ base, own string }{
	prerouting: {"PREROUTING", "ISTIO_PRERT"},
	output:     {"OUTPUT", "ISTIO_OUTPUT"},
}

// IPTablesRestore is one family's rules as input for `iptables-restore --noflush` or `ip6tables-restore --noflush`; empty
// if the plan has none. It exists to be compared with upstream's shape: Apply uses nftables.
func (p Plan) IPTablesRestore(f Family) string {
	var s strings.Builder
	routed := false
	for _, have := range p.Routed {
		routed = routed || have == f
	}
	if !routed {
		return ""
	}
	for _, t := range p.Tables {
		fmt.Fprintf(&s, "*%s\n", t.Kind)
		hooks := []struct {
			hook  hook
			rules []Rule
		}{{prerouting, t.Prerouting}, {output, t.Output}}
		for _, h := range hooks {
			fmt.Fprintf(&s, ":%s - [0:0]\n", iptablesChain[h.hook].own)
		}
		for _, h := range hooks {
			fmt.Fprintf(&s, "-A %s -j %s\n", iptablesChain[h.hook].base, iptablesChain[h.hook].own)
		}
		for _, h := range hooks {
			for _, r := range h.rules {
				if r.Family == AnyFamily || r.Family == f {
					fmt.Fprintf(&s, "-A %s %s\n", iptablesChain[h.hook].own, iptablesRule(r))
				}
			}
		}
		s.WriteString("COMMIT\n")
	}
	return s.String()
}

func iptablesRule(r Rule) string {
	var words []string
	add := func(not bool, format string, args ...any) {
		word := fmt.Sprintf(format, args...)
		if not {
			word = "! " + word
		}
		words = append(words, word)
	}
	proto := ""
	for _, m := range r.Matches {
		switch m.Field {
		case Source:
			add(m.Not, "-s %s/%d", m.Addr, m.Addr.BitLen())
		case Destination:
			add(m.Not, "-d %s/%d", m.Addr, m.Addr.BitLen())
		case OutInterface:
			add(m.Not, "-o %s", m.Name)
		case Protocol:
			proto = nftProtocol(m.Value)
			add(m.Not, "-p %s", proto)
		case SourcePort:
			words = append(words, "-m "+proto)
			add(m.Not, "--sport %d", m.Value)
		case DestinationPort:
			words = append(words, "-m "+proto)
			add(m.Not, "--dport %d", m.Value)
		case Mark:
			words = append(words, "-m mark")
			add(m.Not, "--mark %#x/%#x", m.Value, m.Mask)
		case ConnMark:
			words = append(words, "-m connmark")
			add(m.Not, "--mark %#x/%#x", m.Value, m.Mask)
		}
	}
	return strings.Join(append(words, iptablesTarget(r.Action)), " ")
}

func iptablesTarget(a Action) string {
	switch a.Verb {
	case Accept:
		return "-j ACCEPT"
	case Redirect:
		return fmt.Sprintf("-j REDIRECT --to-ports %d", a.Value)
	case SetConnMark:
		return fmt.Sprintf("-j CONNMARK --set-xmark %#x/%#x", a.Value, a.Mask)
	case RestoreMark:
		return "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
	case SetZone:
		return fmt.Sprintf("-j CT --zone %d", a.Value)
	}
	return ""
}
