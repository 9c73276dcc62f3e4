// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TCP states as sock_diag(7) numbers them; a request socket has one of its own.
const (
	stateSynRecv    = 3
	stateListen     = 10
	stateNewSynRecv = 12
)

const (
	diagRequestBytes = 56 // struct inet_diag_req_v2
	diagMessageBytes = 72 // struct inet_diag_msg
)

// socketID is a socket's ports, addresses, interface and cookie, as the kernel writes them.
type socketID [48]byte

func (s socketID) sourcePort() uint16 { return binary.BigEndian.Uint16(s[0:2]) }

// sameSource reports whether two listeners have the same address, port and interface.
func (s socketID) sameSource(o socketID) bool {
	return s.sourcePort() == o.sourcePort() && [16]byte(s[4:20]) == [16]byte(o[4:20]) && [4]byte(s[36:40]) == [4]byte(o[36:40])
}

type diagSocket struct {
	id    socketID
	uid   uint32
	inode uint32
}

// group is a SO_REUSEPORT group in the order in which its members began to listen, which is the order of the kernel's array
// as long as no more than two of them ever stood side by side: the kernel fills the place of one that leaves with the last.
type group struct {
	members []uint32 // socket inodes
	own     uint32
}

// groupOf finds the group of the listening socket fd.
func groupOf(fd int) (group, error) {
	family, port, err := localEnd(fd)
	if err != nil {
		return group{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return group{}, os.NewSyscallError("fstat", err)
	}
	socks, err := dumpAround(fd, family, port, 1<<stateListen)
	if err != nil {
		return group{}, err
	}
	own := slices.IndexFunc(socks, func(s diagSocket) bool { return s.inode == uint32(st.Ino) })
	if own < 0 {
		return group{}, fmt.Errorf("listening socket %d is not in the kernel's list", st.Ino)
	}
	g := group{own: socks[own].inode}
	for _, s := range socks {
		if s.id.sameSource(socks[own].id) && s.uid == socks[own].uid {
			g.members = append(g.members, s.inode)
		}
	}
	if family == unix.AF_INET {
		slices.Reverse(g.members) // the kernel puts IPv4 listeners at the head of its list, IPv6 ones at the tail
	}
	return g, nil
}

// candidate is the index that the newest member but own has, or -1 if there is none. Where that proves wrong, the other
// indexes follow with attempt 1, 2 and so on, and then all again.
func (g group) candidate(attempt int) int {
	if len(g.members) < 2 {
		return -1
	}
	newest := len(g.members) - 1
	if g.members[newest] == g.own {
		newest--
	}
	n := len(g.members)
	return ((newest-attempt)%n + n) % n
}

func (g group) equal(o group) bool { return slices.Equal(g.members, o.members) }

// halfOpen lists the handshakes under way at fd's port.
func halfOpen(fd int) (map[socketID]bool, error) {
	family, port, err := localEnd(fd)
	if err != nil {
		return nil, err
	}
	families := []uint8{uint8(family)}
	if family == unix.AF_INET6 {
		families = append(families, unix.AF_INET) // a dual-stack listener's IPv4 requests
	}
	found := map[socketID]bool{}
	for _, f := range families {
		socks, err := dumpAround(fd, int(f), port, 1<<stateSynRecv|1<<stateNewSynRecv)
		if err != nil {
			return nil, err
		}
		for _, s := range socks {
			found[s.id] = true
		}
	}
	return found, nil
}

func localEnd(fd int) (family int, port uint16, err error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, 0, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return unix.AF_INET, uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return unix.AF_INET6, uint16(sa.Port), nil
	}
	return 0, 0, fmt.Errorf("socket of unknown family %T", sa)
}

// dumpAround lists the TCP sockets with that local port and one of states in the namespace that fd lives in.
func dumpAround(fd, family int, port uint16, states uint32) ([]diagSocket, error) {
	nsfd, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return nil, os.NewSyscallError("ioctl SIOCGSKNS", err)
	}
	ns, err := FromFD(nsfd)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	req := make([]byte, diagRequestBytes)
	req[0], req[1] = uint8(family), unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[4:], states)
	binary.BigEndian.PutUint16(req[8:], port)
	var socks []diagSocket
	err = ns.Do(func() error {
		r := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		r.AddRawData(req)
		msgs, err := r.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return fmt.Errorf("list TCP sockets on port %d: %w", port, err)
		}
		for _, m := range msgs {
			if s, ok := decodeDiag(m); ok && s.id.sourcePort() == port {
				socks = append(socks, s)
			}
		}
		return nil
	})
	return socks, err
}

// decodeDiag reads a struct inet_diag_msg.
func decodeDiag(m []byte) (diagSocket, bool) {
	if len(m) < diagMessageBytes {
		return diagSocket{}, false
	}
	return diagSocket{
		id:    socketID(m[4:52]),
		uid:   binary.NativeEndian.Uint32(m[64:68]),
		inode: binary.NativeEndian.Uint32(m[68:72]),
	}, true
}
