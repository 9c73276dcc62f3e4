// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// wholeFrame is more than any frame has.
const wholeFrame = 1 << 18

// controlProgram lets the kernel drop what is not IP, UDP, and TCP segments without SYN, FIN and RST. ICMP passes, and so
// does what follows an IPv6 extension header, a fragment's too. A later fragment of an IPv4 segment has no TCP header, and
// may pass or not by its bytes; no filter that is for control packets alone chooses it. Recording beside a transfer of
// gigabytes then costs next to nothing.
func controlProgram() []bpf.Instruction {
	const (
		ipv4, ipv6 = 0x0800, 0x86dd
		tcp, udp   = 6, 17
		link       = 14 // bytes of an Ethernet header
		tcpFlagsAt = 13
		finSynRst  = 0x07
	)
	return []bpf.Instruction{
		0:  bpf.LoadAbsolute{Off: 12, Size: 2},
		1:  bpf.JumpIf{Cond: bpf.JumpEqual, Val: ipv4, SkipTrue: 2},
		2:  bpf.JumpIf{Cond: bpf.JumpEqual, Val: ipv6, SkipTrue: 7},
		3:  bpf.RetConstant{Val: 0},
		4:  bpf.LoadAbsolute{Off: link + 9, Size: 1}, // IPv4
		5:  bpf.JumpIf{Cond: bpf.JumpEqual, Val: udp, SkipTrue: 10},
		6:  bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: tcp, SkipTrue: 8},
		7:  bpf.LoadMemShift{Off: link},
		8:  bpf.LoadIndirect{Off: link + tcpFlagsAt, Size: 1},
		9:  bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: finSynRst, SkipTrue: 5, SkipFalse: 6},
		10: bpf.LoadAbsolute{Off: link + 6, Size: 1}, // IPv6
		11: bpf.JumpIf{Cond: bpf.JumpEqual, Val: udp, SkipTrue: 4},
		12: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: tcp, SkipTrue: 2},
		13: bpf.LoadAbsolute{Off: link + 40 + tcpFlagsAt, Size: 1},
		14: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: finSynRst, SkipFalse: 1},
		15: bpf.RetConstant{Val: wholeFrame},
		16: bpf.RetConstant{Val: 0},
	}
}

// attach makes the kernel drop what the program returns 0 for.
func attach(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(code)), Filter: (*unix.SockFilter)(unsafe.Pointer(&code[0]))}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}
