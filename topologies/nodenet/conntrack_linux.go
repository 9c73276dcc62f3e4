// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// translations are where virtual UDP addresses lead.
type translations map[netip.AddrPort]map[netip.AddrPort]bool

// udpTranslations reads them from the rules, planned or installed.
func udpTranslations(chains []chain) translations {
	endpoints := map[string]map[netip.AddrPort]bool{}
	for _, c := range chains {
		endpoints[c.name] = map[netip.AddrPort]bool{}
		for _, r := range c.rules {
			if r.verb == dnat {
				endpoints[c.name][r.to] = true
			}
		}
	}
	t := translations{}
	for _, c := range chains {
		for _, r := range c.rules {
			if c.name == chainServices && r.protocol == UDP && r.verb == goTo {
				t[netip.AddrPortFrom(r.destination.Addr(), r.port)] = endpoints[r.target]
			}
		}
	}
	return t
}

// Numbers of ctnetlink (linux/netfilter/nfnetlink_conntrack.h and, for the filter's flags, nf_internals.h).
const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	ctaTupleOrig, ctaTupleReply, ctaFilter    = 1, 2, 25
	ctaTupleIP, ctaTupleProto                 = 1, 2
	ctaV4Src, ctaV4Dst, ctaV6Src, ctaV6Dst    = 1, 2, 3, 4
	ctaProtoNum, ctaProtoSrc, ctaProtoDst     = 1, 2, 3
	ctaFilterOrig, ctaFilterReply             = 1, 2
	filterProto, filterPortSrc, filterPortDst = 1 << 3, 1 << 4, 1 << 5
	nfgenBytes                                = 4 // struct nfgenmsg, which stands before the attributes
)

// forgetUDP makes the kernel choose again for flows to endpoints that are gone. A UDP client that keeps its port would
// otherwise be sent to the old endpoint for as long as it goes on asking; a TCP connection has an end.
func forgetUDP(before, after []chain) error {
	was, is := udpTranslations(before), udpTranslations(after)
	var errs []error
	for vip, endpoints := range was {
		for e := range endpoints {
			if is[vip][e] {
				continue
			}
			if err := insist(func() error { return forgetFlows(vip, e) }); err != nil {
				errs = append(errs, fmt.Errorf("forget UDP flows from %s to %s: %w", vip, e, err))
			}
		}
	}
	return errors.Join(errs...)
}

// insist tries a few times: the kernel interrupts a dump when its table grows, and there is no later occasion, since the
// rules are what they should be from now on.
func insist(try func() error) error {
	const tries = 5
	var err error
	for range tries {
		if err = try(); err == nil {
			return nil
		}
	}
	return err
}

// forgetFlows deletes the UDP flows to vip that endpoint answers.
func forgetFlows(vip, endpoint netip.AddrPort) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	head := []byte{unix.AF_INET, 1, 0, 0} // only with a version does the kernel look at the family
	if vip.Addr().Is6() {
		head[0] = unix.AF_INET6
	}
	query, err := portsQuery(vip.Port(), endpoint.Port())
	if err != nil {
		return err
	}
	flows, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Dump}, Data: append(head, query...),
	})
	if err != nil {
		return fmt.Errorf("list flows: %w", err)
	}
	for _, f := range flows {
		flow, err := decodeFlow(f.Data)
		if err != nil {
			return err
		}
		if flow.dst != vip || flow.answers != endpoint {
			continue
		}
		exact, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: ctaTupleOrig | netlink.Nested, Data: flow.orig}})
		if err != nil {
			return err
		}
		_, err = conn.Execute(netlink.Message{
			Header: netlink.Header{Type: ctDelete, Flags: netlink.Request | netlink.Acknowledge}, Data: append(head[:nfgenBytes:nfgenBytes], exact...),
		})
		if err != nil && !errors.Is(err, unix.ENOENT) { // it may have ended by itself
			return fmt.Errorf("delete flow: %w", err)
		}
	}
	return nil
}

// portsQuery asks for UDP flows by the port they go to and the port that answers. Having the kernel look matters: a busy node
// has so many TCP flows that reading all takes seconds. It is not asked for the addresses because kernels get those of IPv6 wrong.
func portsQuery(to, from uint16) ([]byte, error) {
	attrs := netlink.NewAttributeEncoder()
	port := func(attr, number uint16) func(*netlink.AttributeEncoder) error {
		return func(t *netlink.AttributeEncoder) error {
			t.Nested(ctaTupleProto, func(proto *netlink.AttributeEncoder) error {
				proto.Uint8(ctaProtoNum, unix.IPPROTO_UDP)
				proto.Bytes(attr, binary.BigEndian.AppendUint16(nil, number))
				return nil
			})
			return nil
		}
	}
	attrs.Nested(ctaTupleOrig, port(ctaProtoDst, to))
	attrs.Nested(ctaTupleReply, port(ctaProtoSrc, from))
	attrs.Nested(ctaFilter, func(filter *netlink.AttributeEncoder) error {
		filter.Uint32(ctaFilterOrig, filterProto|filterPortDst)
		filter.Uint32(ctaFilterReply, filterProto|filterPortSrc)
		return nil
	})
	return attrs.Encode()
}

// flow is where a flow goes, and who answers.
type flow struct {
	dst, answers netip.AddrPort
	orig         []byte // the tuple as the kernel wrote it
}

func decodeFlow(message []byte) (flow, error) {
	var f flow
	if len(message) < nfgenBytes {
		return f, errors.New("flow message ends early")
	}
	attrs, err := netlink.NewAttributeDecoder(message[nfgenBytes:])
	if err != nil {
		return f, fmt.Errorf("decode flow: %w", err)
	}
	for attrs.Next() {
		switch attrs.Type() {
		case ctaTupleOrig:
			f.orig = attrs.Bytes()
			attrs.Nested(func(t *netlink.AttributeDecoder) error { return decodeEnd(t, &f.dst, ctaV4Dst, ctaV6Dst, ctaProtoDst) })
		case ctaTupleReply:
			attrs.Nested(func(t *netlink.AttributeDecoder) error {
				return decodeEnd(t, &f.answers, ctaV4Src, ctaV6Src, ctaProtoSrc)
			})
		}
	}
	return f, attrs.Err()
}

// decodeEnd reads one end of a tuple: the attributes of its address, by family, and of its port say which. What is no UDP stays zero.
func decodeEnd(t *netlink.AttributeDecoder, end *netip.AddrPort, v4, v6, port uint16) error {
	var addr netip.Addr
	var number uint16
	udp := false
	for t.Next() {
		switch t.Type() {
		case ctaTupleIP:
			t.Nested(func(ip *netlink.AttributeDecoder) error {
				for ip.Next() {
					if ip.Type() == v4 || ip.Type() == v6 {
						addr, _ = netip.AddrFromSlice(ip.Bytes())
					}
				}
				return nil
			})
		case ctaTupleProto:
			t.Nested(func(proto *netlink.AttributeDecoder) error {
				for proto.Next() {
					switch proto.Type() {
					case ctaProtoNum:
						udp = proto.Uint8() == unix.IPPROTO_UDP
					case port:
						if b := proto.Bytes(); len(b) == portBytes {
							number = binary.BigEndian.Uint16(b)
						}
					}
				}
				return nil
			})
		}
	}
	if udp {
		*end = netip.AddrPortFrom(addr, number)
	}
	return t.Err()
}
