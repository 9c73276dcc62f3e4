// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTCPCounters(t *testing.T) {
	c, err := TCPCounters()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ActiveOpens", "RetransSegs", "TCPTimeouts"} {
		if _, ok := c[name]; !ok {
			t.Errorf("no counter %s among %d", name, len(c))
		}
	}
}

// Messages are whole, as long as they say, and differ in what tells connections apart.
func TestConntrackMessages(t *testing.T) {
	seen := map[string]bool{}
	for _, nth := range []uint32{0, 1, 65535, 65536, 1 << 18} {
		m := appendConnection(nil, nth, 5, true)
		if n := binary.NativeEndian.Uint32(m); int(n) != len(m) || n%4 != 0 {
			t.Errorf("message %d: says %d, is %d bytes", nth, n, len(m))
		}
		if seq := binary.NativeEndian.Uint32(m[8:]); seq != nth {
			t.Errorf("message %d: sequence %d", nth, seq)
		}
		body := string(m[unix.NLMSG_HDRLEN:])
		if seen[body] {
			t.Errorf("message %d is another's", nth)
		}
		seen[body] = true
	}
}
