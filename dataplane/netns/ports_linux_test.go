// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"os"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func TestLocalPorts(t *testing.T) {
	narrow, other := nstest.New(t), nstest.New(t)
	nstest.In(t, narrow, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40015"), 0o644)
	})
	if first, last, err := narrow.LocalPorts(); err != nil || first != 40000 || last != 40015 {
		t.Errorf("%d to %d, %v", first, last, err)
	}
	if first, last, err := other.LocalPorts(); err != nil || first == 40000 || first >= last {
		t.Errorf("another namespace: %d to %d, %v", first, last, err)
	}
}
