// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// FilterSyntax describes what ParseFilter understands.
const FilterSyntax = `terms joined by "and" and "or" ("and" binds closer), each with or without "not":
ip, ip6, tcp, udp, icmp, [tcp|udp] port NUMBER, host ADDRESS, and of TCP segments syn, fin, rst`

// Filter chooses packets. The zero value chooses all.
type Filter struct {
	any [][]term // one list must match entirely
}

// term is one condition.
type term struct {
	not      bool
	network  gopacket.LayerType // 0 is any
	protocol string             // "tcp", "udp", "icmp" or "" for any
	port     uint16             // 0 is any
	host     netip.Addr         // invalid is any
	flag     string             // "syn", "fin", "rst" or "" for any
}

// ParseFilter reads a filter; see FilterSyntax.
func ParseFilter(s string) (Filter, error) {
	words := strings.Fields(strings.ToLower(s))
	if len(words) == 0 {
		return Filter{}, nil
	}
	f := Filter{any: [][]term{nil}}
	for {
		t, rest, err := parseTerm(words)
		if err != nil {
			return Filter{}, fmt.Errorf("parse filter %q: %w; a filter is %s", s, err, FilterSyntax)
		}
		last := len(f.any) - 1
		f.any[last] = append(f.any[last], t)
		if len(rest) == 0 {
			return f, nil
		}
		switch rest[0] {
		case "and", "&&":
		case "or", "||":
			f.any = append(f.any, nil)
		default:
			return Filter{}, fmt.Errorf("parse filter %q: %q where \"and\" or \"or\" belongs; a filter is %s", s, rest[0], FilterSyntax)
		}
		words = rest[1:]
	}
}

func parseTerm(words []string) (t term, rest []string, err error) {
	next := func() string {
		if len(words) == 0 {
			return ""
		}
		w := words[0]
		words = words[1:]
		return w
	}
	word := next()
	if word == "not" || word == "!" {
		t.not = true
		word = next()
	}
	switch word {
	case "ip", "ip4":
		t.network = layers.LayerTypeIPv4
	case "ip6":
		t.network = layers.LayerTypeIPv6
	case "tcp", "udp", "icmp":
		t.protocol = word
		if len(words) > 0 && words[0] == "port" && word != "icmp" {
			next()
			t.port, err = parsePort(next())
		}
	case "syn", "fin", "rst":
		t.flag = word
	case "port":
		t.port, err = parsePort(next())
	case "host":
		host := next()
		if t.host, err = netip.ParseAddr(host); err != nil {
			err = fmt.Errorf("host %q is not an address", host)
		}
		t.host = t.host.Unmap()
	case "":
		err = errors.New("it ends where a term belongs")
	default:
		err = fmt.Errorf("unknown word %q", word)
	}
	return t, words, err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

func (f Filter) match(p *parsed) bool {
	if f.any == nil {
		return true
	}
	return slices.ContainsFunc(f.any, func(all []term) bool {
		return !slices.ContainsFunc(all, func(t term) bool { return t.match(p) == t.not })
	})
}

func (t term) match(p *parsed) bool {
	return (t.network == 0 || t.network == p.network) &&
		(t.protocol == "" || t.protocol == p.protocol) &&
		(t.port == 0 || t.port == p.src.Port() || t.port == p.dst.Port()) &&
		(!t.host.IsValid() || t.host == p.src.Addr() || t.host == p.dst.Addr()) &&
		(t.flag == "" || p.flags.has(t.flag))
}

// controlOnly reports whether the filter chooses nothing but the packets that open, end or refuse connections, so that
// the kernel need not hand over any other.
func (f Filter) controlOnly() bool {
	return f.any != nil && !slices.ContainsFunc(f.any, func(all []term) bool {
		return !slices.ContainsFunc(all, func(t term) bool { return !t.not && (t.flag != "" || t.protocol == "icmp") })
	})
}
