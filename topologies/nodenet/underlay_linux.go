// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/nodenet/nft"
)

// Underlay is the network between nodes and outside hosts: one bridge in the lab's root namespace, which itself has no address
// and no route on it, so nothing leads out of the lab.
type Underlay struct {
	Bridge string // its link name, such as "underlay"
	// Subnets hold the members' addresses, at most one per family.
	Subnets []netip.Prefix
}

// Member is a namespace on the underlay: a node or an outside host.
type Member struct {
	// Port is the name of the bridge's end of the link, at most 15 bytes.
	Port string
	// Addresses are set on the member's end, UnderlayLink: those within a subnet with its length, others alone.
	Addresses []netip.Addr
	MTU       int // of both ends; 0 is the kernel's default
	// Plain turns segmentation and checksum offload off at both ends.
	Plain bool
}

// Address is the n-th address of each subnet, counted from 1, in the order of Subnets.
func (u Underlay) Address(n int) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, p := range u.Subnets {
		a := p.Masked().Addr()
		for range n {
			a = a.Next()
		}
		if !p.Contains(a) || n < 1 {
			return nil, fmt.Errorf("underlay %s has no address number %d", p, n)
		}
		all = append(all, a)
	}
	return all, nil
}

// Prepare makes a new namespace ready to get links: no duplicate address detection, which costs 1.65 s a link, and loopback up.
// It comes before the first link; a nil ns is the caller's own.
func Prepare(ctx context.Context, ns *netns.NS) error {
	return nft.Inside(ctx, ns, "prepare namespace", func() error {
		wrong, err := wrongSettings([]Setting{{"net/ipv6/conf/default/accept_dad", "0"}})
		if err != nil {
			return err
		}
		if err := writeSettings(wrong); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find loopback link: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set loopback link up: %w", err)
		}
		return nil
	})
}

// Create makes the bridge in root; a nil root is the caller's own namespace. An existing bridge is kept.
func (u Underlay) Create(ctx context.Context, root *netns.NS) error {
	return nft.Inside(ctx, root, "create underlay", func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = u.Bridge
		off := false // multicast snooping would delay neighbour discovery on new ports
		err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add bridge %s: %w", u.Bridge, err)
		}
		l, err := netlink.LinkByName(u.Bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", u.Bridge, err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("set bridge %s up: %w", u.Bridge, err)
		}
		return nil
	})
}

// Attach joins the namespace member to the bridge in root (nil: the caller's own) by a veth pair whose ends are up. Prepare
// came before. The link is gone when either namespace is, or by Detach.
func (u Underlay) Attach(ctx context.Context, root, member *netns.NS, m Member) error {
	err := nft.Inside(ctx, root, "attach "+m.Port, func() error {
		bridge, err := netlink.LinkByName(u.Bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", u.Bridge, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex, attrs.MTU = m.Port, bridge.Attrs().Index, m.MTU
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: UnderlayLink, PeerNamespace: netlink.NsFd(member.Fd())})
		if err != nil {
			return fmt.Errorf("add link: %w", err)
		}
		port, err := netlink.LinkByName(m.Port)
		if err != nil {
			return fmt.Errorf("find link: %w", err)
		}
		if err := m.offload(m.Port); err != nil {
			return err
		}
		return netlink.LinkSetUp(port)
	})
	if err != nil {
		return err
	}
	if err := nft.Inside(ctx, member, "attach "+m.Port, func() error { return u.configure(m) }); err != nil {
		return err
	}
	if err := WaitUp(ctx, member, UnderlayLink); err != nil {
		return err
	}
	return WaitUp(ctx, root, m.Port)
}

// upPoll and upTimeout bound how WaitUp looks for a link's state.
const (
	upPoll    = 500 * time.Microsecond
	upTimeout = 5 * time.Second
)

// WaitUp returns when the link carries packets. The kernel notes a veth's carrier a moment after both ends are set up, and
// drops what is sent before, which costs the first connection a second.
func WaitUp(ctx context.Context, ns *netns.NS, link string) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	return nft.Inside(ctx, ns, "wait for link "+link, func() error {
		tick := time.NewTicker(upPoll)
		defer tick.Stop()
		for {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return fmt.Errorf("find link %s: %w", link, err)
			}
			if l.Attrs().OperState == netlink.OperUp {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("link %s is %s: %w", link, l.Attrs().OperState, ctx.Err())
			case <-tick.C:
			}
		}
	})
}

// Detach deletes the member's link; one that is not there is no error.
func (u Underlay) Detach(ctx context.Context, root *netns.NS, m Member) error {
	return nft.Inside(ctx, root, "detach "+m.Port, func() error {
		l, err := netlink.LinkByName(m.Port)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
}

// configure gives the member's end its addresses.
func (u Underlay) configure(m Member) error {
	l, err := netlink.LinkByName(UnderlayLink)
	if err != nil {
		return fmt.Errorf("find link %s: %w", UnderlayLink, err)
	}
	for _, a := range m.Addresses {
		bits := a.BitLen()
		for _, p := range u.Subnets {
			if p.Contains(a) {
				bits = p.Bits()
			}
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if err := m.offload(UnderlayLink); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set link %s up: %w", UnderlayLink, err)
	}
	return nil
}

func (m Member) offload(link string) error {
	if !m.Plain {
		return nil
	}
	return plainPackets(link)
}
