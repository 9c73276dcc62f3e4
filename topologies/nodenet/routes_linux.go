// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that nodenet owns, as routing daemons do.
const routeProtocol = 0x4c

const sysctlRoot = "/proc/sys"

// installedRoute is a route of the kernel beside what it means here.
type installedRoute struct {
	Route
	kernel netlink.Route
}

// routeDelta is what has to go and what has to come.
type routeDelta struct {
	missing    []Route
	unexpected []installedRoute
}

func (d routeDelta) empty() bool { return len(d.missing)+len(d.unexpected) == 0 }

func (d routeDelta) lines() []string {
	var lines []string
	for _, r := range d.missing {
		lines = append(lines, "missing: "+r.String())
	}
	for _, r := range d.unexpected {
		lines = append(lines, "unexpected: "+r.String())
	}
	return lines
}

func wrongRoutes(want []Route) (routeDelta, error) {
	have, err := readRoutes()
	if err != nil {
		return routeDelta{}, err
	}
	var d routeDelta
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h installedRoute) bool { return h.Route == w }) {
			d.missing = append(d.missing, w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h.Route) {
			d.unexpected = append(d.unexpected, h)
		}
	}
	return d, nil
}

func readRoutes() ([]installedRoute, error) {
	var routes []installedRoute
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RouteListFiltered(f, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			routes = append(routes, installedRoute{Route: fromKernel(r), kernel: r})
		}
	}
	return routes, nil
}

func fromKernel(r netlink.Route) Route {
	var out Route
	if r.Dst != nil {
		addr, _ := netip.AddrFromSlice(r.Dst.IP)
		ones, bits := r.Dst.Mask.Size()
		if bits == 32 {
			addr = addr.Unmap()
		}
		out.Dst = netip.PrefixFrom(addr, ones)
	}
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		out.Via = via.Unmap()
	}
	out.MTU = r.MTU
	return out
}

func (d routeDelta) write() error {
	for _, r := range d.unexpected {
		if err := netlink.RouteDel(&r.kernel); err != nil {
			return fmt.Errorf("delete %s: %w", r.Route, err)
		}
	}
	if len(d.missing) == 0 {
		return nil
	}
	link, err := netlink.LinkByName(UnderlayLink)
	if err != nil {
		return fmt.Errorf("find link %s: %w; %w", UnderlayLink, err, errNoLink)
	}
	for _, r := range d.missing {
		k := netlink.Route{
			LinkIndex: link.Attrs().Index, Protocol: routeProtocol, MTU: r.MTU,
			Dst: &net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), r.Dst.Addr().BitLen())},
		}
		if r.Via.IsValid() {
			k.Gw = r.Via.AsSlice()
		} else if r.Dst.Addr().Is4() {
			k.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteAdd(&k); err != nil {
			return fmt.Errorf("add %s: %w", r, err)
		}
	}
	return nil
}

// wrongSettings are those that do not hold. A kernel without IPv6 has no settings for it and needs none.
func wrongSettings(want []Setting) ([]Setting, error) {
	var wrong []Setting
	for _, s := range want {
		b, err := os.ReadFile(filepath.Join(sysctlRoot, s.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read setting %s: %w", s.Name, err)
		case strings.TrimSpace(string(b)) != s.Value:
			wrong = append(wrong, s)
		}
	}
	return wrong, nil
}

func writeSettings(settings []Setting) error {
	for _, s := range settings {
		if err := os.WriteFile(filepath.Join(sysctlRoot, s.Name), []byte(s.Value), 0o644); err != nil {
			return fmt.Errorf("set %s to %s: %w (is /proc/sys writable here?)", s.Name, s.Value, err)
		}
	}
	return nil
}
