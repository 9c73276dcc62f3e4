// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Listening is the TCP ports of the namespace at which something listens, of either family and at whatever address.
func (n *NS) Listening() (map[uint16]bool, error) {
	ports := map[uint16]bool{}
	err := n.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			req := make([]byte, diagRequestBytes)
			req[0], req[1] = family, unix.IPPROTO_TCP
			binary.NativeEndian.PutUint32(req[4:], 1<<stateListen)
			r := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			r.AddRawData(req)
			msgs, err := r.Execute(unix.NETLINK_INET_DIAG, 0)
			if err != nil {
				return err
			}
			for _, m := range msgs {
				if s, ok := decodeDiag(m); ok {
					ports[s.id.sourcePort()] = true
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list listening sockets of %s: %w", n, err)
	}
	return ports, nil
}
