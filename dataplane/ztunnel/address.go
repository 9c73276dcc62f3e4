// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

func remoteOf(c *net.TCPConn) netip.AddrPort { return addrPort(c.RemoteAddr()) }
func localOf(c *net.TCPConn) netip.AddrPort  { return addrPort(c.LocalAddr()) }

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return unmap(t.AddrPort())
}

// unmap turns what a dual-stack socket says into the address that everyone else knows.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// authority is a CONNECT's target: an address, or a host name with a zero address.
type authority struct {
	ip   netip.Addr
	host string
	port uint16
}

func parseAuthority(s string) (authority, error) {
	if a, err := netip.ParseAddrPort(s); err == nil && a.Port() != 0 && a.Addr().Zone() == "" {
		a = unmap(a)
		return authority{ip: a.Addr(), port: a.Port()}, nil
	}
	host, digits, ok := strings.Cut(s, ":")
	port, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil || port == 0 || !hostname(host) {
		return authority{}, fmt.Errorf("authority %q: want an address or host name, and a port", s)
	}
	return authority{host: host, port: uint16(port)}, nil
}

// hostname reports whether s may be a DNS name; one that looks like an IPv4 address is a mistyped address.
func hostname(s string) bool {
	letters := false
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			letters = true
		case c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return false
		}
	}
	return letters
}
