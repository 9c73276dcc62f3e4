// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// FlushRules removes all of nftables' rules in the caller's namespace, whoever made them.
func FlushRules() error {
	c, err := nftables.New()
	if err == nil {
		c.FlushRuleset()
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("flush rules: %w", err)
	}
	return nil
}

// TCPCounters are the kernel's counters of TCP in the caller's namespace, by their names in RFC 4022, and Linux's own beside them.
func TCPCounters() (map[string]int64, error) {
	out := map[string]int64{}
	for _, x := range []struct{ file, line string }{{"/proc/net/snmp", "Tcp:"}, {"/proc/net/netstat", "TcpExt:"}} {
		text, err := os.ReadFile(x.file)
		if err != nil {
			return nil, fmt.Errorf("read counters: %w", err)
		}
		var names []string
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			switch {
			case len(fields) == 0 || fields[0] != x.line:
			case names == nil:
				names = fields
			default:
				for i := 1; i < min(len(names), len(fields)); i++ {
					out[names[i]], _ = strconv.ParseInt(fields[i], 10, 64) // names are no numbers and come first
				}
			}
		}
	}
	return out, nil
}

// filled marks the connections that FillConntrack adds, and bounds the life of those that nobody takes out.
const (
	filledMark = 0xf111ed
	filledFor  = 10 * time.Minute
)

// FillConntrack adds connections that nobody has to the caller's table until the kernel takes no more or n are there, and returns
// how many it took. Each is one that the kernel does not give up for another (IPS_ASSURED). It needs CAP_NET_ADMIN.
func FillConntrack(n int) (int, error) {
	fd, err := openConntrack()
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	const batch = 100 // as many refusals fit into a socket's buffer; the kernel answers a batch's last, and whatever it refuses
	answer := make([]byte, 64<<10)
	for done := 0; done < n; {
		var msg []byte
		size := min(batch, n-done)
		for i := range size {
			msg = appendConnection(msg, uint32(done+i), uint32(filledFor/time.Second), i == size-1)
		}
		if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return done, fmt.Errorf("add connections: %w", err)
		}
		taken, err := answers(fd, answer, uint32(done), size)
		done += taken
		switch {
		case errors.Is(err, unix.ENOMEM):
			return done, nil // the table is full
		case err != nil:
			return done, fmt.Errorf("add connections: %w", err)
		}
	}
	return n, nil
}

// EmptyConntrack takes out what FillConntrack added to the caller's table.
func EmptyConntrack() error {
	fd, err := openConntrack()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, appendRemoval(nil), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("remove connections: %w", err)
	}
	if _, err := answers(fd, make([]byte, 64<<10), 0, 1); err != nil {
		return fmt.Errorf("remove connections: %w", err)
	}
	return nil
}

func openConntrack() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return 0, fmt.Errorf("open netlink: %w", err)
	}
	return fd, nil
}

// answers reads until the batch's last connection was answered, and counts those that were not refused.
func answers(fd int, buf []byte, first uint32, size int) (taken int, err error) {
	taken = size
	for {
		n, _, recvErr := unix.Recvfrom(fd, buf, 0)
		if recvErr != nil {
			return 0, recvErr
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN+4; {
			length := binary.NativeEndian.Uint32(b)
			seq := binary.NativeEndian.Uint32(b[8:])
			if errno := -int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])); errno != 0 {
				taken--
				err = unix.Errno(errno)
			}
			if seq == first+uint32(size)-1 {
				return taken, err
			}
			b = b[min(int(length+3)&^3, len(b)):]
		}
	}
}

// Attributes of a connection in nfnetlink_conntrack.h.
const (
	newConnection     = 1 << 8   // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
	removeConnections = 1<<8 | 2 // IPCTNL_MSG_CT_DELETE; without a tuple, all with the mark

	tupleOrig, tupleReply, status, protoInfo, timeout = 1, 2, 3, 4, 7
	ctMark, ctMarkMask                                = 8, 21
	tupleIP, tupleProto                               = 1, 2
	ip4Src, ip4Dst                                    = 1, 2
	protoNum, protoSrc, protoDst                      = 1, 2, 3
	protoInfoTCP, tcpState                            = 1, 1

	seenReply, assured, confirmed = 1 << 1, 1 << 2, 1 << 3
	tcpEstablished                = 3
	nested                        = 1 << 15
)

func appendConnection(b []byte, nth, seconds uint32, acknowledge bool) []byte {
	start := len(b)
	flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	if acknowledge {
		flags |= unix.NLM_F_ACK
	}
	b = appendHeader(b, newConnection, flags, nth)
	// Both ends are in a range for documentation (RFC 5737); the number is in ports and the client's last byte.
	client, server := netip.AddrFrom4([4]byte{192, 0, 2, byte(nth >> 16)}), netip.AddrFrom4([4]byte{198, 51, 100, 1})
	from, to := uint16(nth), uint16(80)
	b = appendTuple(b, tupleOrig, client, server, from, to)
	b = appendTuple(b, tupleReply, server, client, to, from)
	b = appendAttr(b, status, binary.BigEndian.AppendUint32(nil, seenReply|assured|confirmed))
	b = appendAttr(b, timeout, binary.BigEndian.AppendUint32(nil, seconds))
	b = appendAttr(b, ctMark, binary.BigEndian.AppendUint32(nil, filledMark))
	b = appendAttr(b, protoInfo|nested, appendAttr(nil, protoInfoTCP|nested, appendAttr(nil, tcpState, []byte{tcpEstablished})))
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendRemoval(b []byte) []byte {
	start := len(b)
	b = appendHeader(b, removeConnections, unix.NLM_F_REQUEST|unix.NLM_F_ACK, 0)
	b = appendAttr(b, ctMark, binary.BigEndian.AppendUint32(nil, filledMark))
	b = appendAttr(b, ctMarkMask, binary.BigEndian.AppendUint32(nil, 0xffffffff))
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// appendHeader leaves the length to be filled in.
func appendHeader(b []byte, kind, flags uint16, seq uint32) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	return append(b, 0, 0, 0, 0, unix.AF_INET, 0, 0, 0)
}

func appendTuple(b []byte, kind uint16, src, dst netip.Addr, sport, dport uint16) []byte {
	ip := appendAttr(appendAttr(nil, ip4Src, src.AsSlice()), ip4Dst, dst.AsSlice())
	proto := appendAttr(nil, protoNum, []byte{unix.IPPROTO_TCP})
	proto = appendAttr(proto, protoSrc, binary.BigEndian.AppendUint16(nil, sport))
	proto = appendAttr(proto, protoDst, binary.BigEndian.AppendUint16(nil, dport))
	return appendAttr(b, kind|nested, append(appendAttr(nil, tupleIP|nested, ip), appendAttr(nil, tupleProto|nested, proto)...))
}

// appendAttr pads to four bytes, as netlink wants it.
func appendAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(len(value)+4))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
