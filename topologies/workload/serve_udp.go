// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"context"
	"net"
	"strings"
)

const maxDatagram = 64 << 10

func (s *Server) serveUDP(ctx context.Context, c *net.UDPConn) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		answer := buf[:n]
		if strings.TrimSuffix(string(answer), "\n") == AskSeen {
			var b bytes.Buffer
			if err := s.seen(UDP, net.UDPAddrFromAddrPort(from), c.LocalAddr()).writeLine(&b); err != nil {
				return err
			}
			answer = b.Bytes()
		}
		if _, err := c.WriteToUDPAddrPort(answer, from); err != nil {
			s.debug(UDP, err) // the caller may be gone
		}
	}
}
