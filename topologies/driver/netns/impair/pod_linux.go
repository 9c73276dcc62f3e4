// SPDX-License-Identifier: Apache-2.0

package impair

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// Address is a device's link-layer address.
func Address(d Device) (mac net.HardwareAddr, err error) {
	err = d.do(func() error {
		l, err := net.InterfaceByName(d.Name)
		if err != nil {
			return fmt.Errorf("find %s: %w", d.Name, err)
		}
		mac = l.HardwareAddr
		return nil
	})
	return mac, err
}

// PodLink is a pod's cable that was cut in two: between the node's end and the node's routes stands another pair of devices.
type PodLink struct {
	*Link
	node   *netns.NS
	plug   *netlink.Veth // its first end takes the place of the node's end, its peer is where packets come from and go to
	end    netlink.Link
	routes []netlink.Route // of the node, as they were
}

// OpenPod impairs the cable between a pod's device and its node, whose other end routes lead to, as the ptp plugin makes it. There is from
// the node to the pod.
func OpenPod(ctx context.Context, pod Device, node *netns.NS, there, back lab.Impairment) (_ *PodLink, err error) {
	p := &PodLink{Link: &Link{}, node: node}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	index := 0
	if err = pod.do(func() error {
		l, err := netlink.LinkByName(pod.Name)
		if err == nil {
			index = l.Attrs().ParentIndex
		}
		return err
	}); err != nil {
		return p, fmt.Errorf("find the pod's device: %w", err)
	}
	if err = node.Do(func() error { return p.insert(index) }); err != nil {
		return p, err
	}
	if err = nodenet.WaitUp(ctx, node, p.plug.Name); err != nil {
		return p, err
	}
	end, inner := Device{node, p.end.Attrs().Name}, Device{node, p.plug.PeerName}
	p.Link, err = Open(
		Direction{Path{In: inner, Out: end, Sender: Device{node, p.plug.Name}}, there},
		Direction{Path{In: end, Out: inner, Sender: pod}, back},
	)
	if err != nil {
		p.Link = &Link{}
		return p, err
	}
	err = node.Do(func() error { return p.move(p.plug) })
	return p, err
}

// insert makes the pair. Its first end answers for the node's end: same link-layer address, same addresses.
func (p *PodLink) insert(index int) error {
	end, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Errorf("find the node's end of the pod's cable: %w", err)
	}
	p.end = end
	if p.routes, err = routesTo(end); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = fmt.Sprintf("plug%d", index), end.Attrs().MTU, end.Attrs().HardwareAddr
	plug := &netlink.Veth{LinkAttrs: attrs, PeerName: fmt.Sprintf("sock%d", index)}
	if err := netlink.LinkAdd(plug); err != nil {
		return fmt.Errorf("add %s: %w", attrs.Name, err)
	}
	p.plug = plug
	addrs, err := netlink.AddrList(end, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue // it has its own, and the same
		}
		if err := netlink.AddrAdd(plug, &netlink.Addr{IPNet: a.IPNet, Flags: a.Flags, Scope: a.Scope}); err != nil {
			return fmt.Errorf("add address %s: %w", a.IPNet, err)
		}
	}
	for _, name := range []string{plug.Name, plug.PeerName} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

// routesTo are the routes over a link that somebody has made, not those that follow from its addresses.
func routesTo(l netlink.Link) ([]netlink.Route, error) {
	all, err := netlink.RouteList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var routes []netlink.Route
next:
	for _, r := range all {
		if r.Dst == nil || r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() {
			continue
		}
		for _, a := range addrs {
			if a.IP.Equal(r.Dst.IP) {
				continue next
			}
		}
		routes = append(routes, r)
	}
	return routes, nil
}

// move makes the routes to the pod lead over l.
func (p *PodLink) move(l netlink.Link) error {
	link, err := netlink.LinkByName(l.Attrs().Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", l.Attrs().Name, err)
	}
	for _, r := range p.routes {
		r.LinkIndex = link.Attrs().Index
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("move route %s: %w", r, err)
		}
	}
	return nil
}

// Close puts the cable together again: first the kernel listens at the old end, then routes lead there, and only then nobody forwards any
// more. In another order the end would miss the pod's answer to who it is, and ask again only after a second.
func (p *PodLink) Close() error {
	errs := []error{p.Link.release()}
	if p.plug != nil {
		errs = append(errs, p.node.Do(func() error { return p.move(p.end) }))
	}
	errs = append(errs, p.Link.finish())
	if p.plug != nil {
		errs = append(errs, p.node.Do(func() error {
			l, err := netlink.LinkByName(p.plug.Name)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}))
	}
	return errors.Join(errs...)
}
