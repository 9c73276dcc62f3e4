// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"
)

// LocalPorts are the first and the last port that the namespace's kernel chooses from for a connection's source
// (ip_local_port_range, for both address families).
func (n *NS) LocalPorts() (first, last uint16, err error) {
	const path = "/proc/sys/net/ipv4/ip_local_port_range"
	err = n.Do(func() error {
		text, err := os.ReadFile(path)
		if err == nil {
			_, err = fmt.Sscan(string(text), &first, &last)
		}
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("read %s in %s: %w", path, n, err)
	}
	return first, last, nil
}
