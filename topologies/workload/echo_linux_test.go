// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"net"
	"os"
	"strconv"
	"testing"
)

// A connection that is held takes one descriptor of the server, as of its client.
func TestEchoHoldsOneDescriptor(t *testing.T) {
	ports := startServer(t)
	before := descriptors(t)
	const n = 50
	for range n {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(ports[TCP]))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		for range 2 { // the server waits for more after it
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := descriptors(t) - before; got < n || got > 2*n+n/2 { // others of earlier tests may close
		t.Errorf("%d connections to the same process took %d descriptors, want %d and few more", n, got, 2*n)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}
