// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"net"

	"golang.org/x/sys/unix"
)

// Sent is how many bytes that were written to c have reached its peer's kernel: what a copy inside the kernel (splice) has
// moved so far and says only at its end. It is never more than was written, and 0 once c is closed.
func Sent(c *net.TCPConn) uint64 {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	var sent uint64
	err = controlRaw(rc, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			// Acknowledged counts SYN and FIN too; what was sent for the first time does not, but may not have arrived.
			sent = min(info.Bytes_acked, info.Bytes_sent-min(info.Bytes_sent, info.Bytes_retrans))
		}
		return err
	})
	if err != nil {
		return 0
	}
	return sent
}
