// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1

	ctaTupleOrig, ctaTupleReply            = 1, 2
	ctaTupleIP, ctaTupleProto              = 1, 2
	ctaV4Src, ctaV4Dst, ctaV6Src, ctaV6Dst = 1, 2, 3, 4
	ctaProtoNum, ctaProtoSrc, ctaProtoDst  = 1, 2, 3
)

// ErrNotTracked says that the kernel's connection tracking knows no such flow.
var ErrNotTracked = errors.New("no such flow is tracked")

// OriginalDestinationUDP is where the sender of a datagram wanted to send it that a rule in the namespace redirected to
// local: what SO_ORIGINAL_DST says of a TCP connection, and of no datagram. client is the datagram's source as local's
// socket saw it. The answer is local itself if nothing redirected the flow, and ErrNotTracked if nobody tracks it.
func (n *NS) OriginalDestinationUDP(client, local netip.AddrPort) (netip.AddrPort, error) {
	client, local = plain(client), plain(local)
	if client.Addr().Is4() != local.Addr().Is4() {
		return netip.AddrPort{}, fmt.Errorf("find original destination of %s at %s: addresses of two families", client, local)
	}
	var dst netip.AddrPort
	err := n.Do(func() (err error) {
		dst, err = trackedDestination(client, local)
		return err
	})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find original destination of %s at %s in %s: %w", client, local, n, err)
	}
	return dst, nil
}

// plain drops what the kernel's tuples do not have.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// trackedDestination asks for the flow by the tuple of its replies, which is the only one known here.
func trackedDestination(client, local netip.AddrPort) (netip.AddrPort, error) {
	family := uint8(unix.AF_INET6)
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	r := nl.NewNetlinkRequest(ctGet, 0)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	r.AddData(udpTuple(ctaTupleReply, local, client))
	msg, err := ask(unix.NETLINK_NETFILTER, r)
	switch {
	case errors.Is(err, unix.ENOENT):
		return netip.AddrPort{}, ErrNotTracked
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("ask connection tracking: %w", err)
	}
	dst, ok := origDestination(msg)
	if !ok {
		return netip.AddrPort{}, errors.New("connection tracking's answer cannot be read")
	}
	return dst, nil
}

// ask puts a question that has one message for an answer, and returns its payload. It must run in the namespace asked about.
// Package nl's own Execute waits for an acknowledgement, which this kind of question has not.
func ask(protocol int, r *nl.NetlinkRequest) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	// The kernel answers before sendto returns; the limit is for the day it does not.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return nil, os.NewSyscallError("setsockopt SO_RCVTIMEO", err)
	}
	if err := unix.Sendto(fd, r.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, os.Getpagesize())
	size, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, os.NewSyscallError("recvfrom", err)
	}
	if size < unix.SizeofNlMsghdr {
		return nil, unix.EBADMSG
	}
	payload := buf[unix.SizeofNlMsghdr:size]
	if binary.NativeEndian.Uint16(buf[4:]) == unix.NLMSG_ERROR {
		if len(payload) < 4 {
			return nil, unix.EBADMSG
		}
		return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(payload)))
	}
	return payload, nil
}

func udpTuple(kind int, src, dst netip.AddrPort) *nl.RtAttr {
	srcType, dstType := ctaV6Src, ctaV6Dst
	if src.Addr().Is4() {
		srcType, dstType = ctaV4Src, ctaV4Dst
	}
	tuple := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	ip := tuple.AddRtAttr(ctaTupleIP|unix.NLA_F_NESTED, nil)
	ip.AddRtAttr(srcType, src.Addr().AsSlice())
	ip.AddRtAttr(dstType, dst.Addr().AsSlice())
	proto := tuple.AddRtAttr(ctaTupleProto|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(ctaProtoNum, []byte{unix.IPPROTO_UDP})
	proto.AddRtAttr(ctaProtoSrc, binary.BigEndian.AppendUint16(nil, src.Port()))
	proto.AddRtAttr(ctaProtoDst, binary.BigEndian.AppendUint16(nil, dst.Port()))
	return tuple
}

// origDestination reads the destination of a flow's first direction.
func origDestination(msg []byte) (netip.AddrPort, bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return netip.AddrPort{}, false
	}
	tuple := attribute(msg[nl.SizeofNfgenmsg:], ctaTupleOrig)
	ip := attribute(tuple, ctaTupleIP)
	raw := attribute(ip, ctaV4Dst)
	if raw == nil {
		raw = attribute(ip, ctaV6Dst)
	}
	addr, ok := netip.AddrFromSlice(raw)
	port := attribute(attribute(tuple, ctaTupleProto), ctaProtoDst)
	if !ok || len(port) != 2 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port)), true
}

// attribute finds the payload of the first netlink attribute of a kind; nil if there is none.
func attribute(b []byte, kind uint16) []byte {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED == kind {
			return b[unix.SizeofNlAttr:size]
		}
		b = b[min(len(b), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return nil
}
