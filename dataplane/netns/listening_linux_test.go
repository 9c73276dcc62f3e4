// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func TestListening(t *testing.T) {
	ns := nstest.New(t)
	expect := func(want map[uint16]bool) {
		t.Helper()
		got, err := ns.Listening()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	expect(map[uint16]bool{})
	for _, addr := range []string{"127.0.0.1:1500", "[::]:1501", "[::1]:1500"} {
		l, err := ns.ListenTCP(t.Context(), netip.MustParseAddrPort(addr), netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	expect(map[uint16]bool{1500: true, 1501: true})
}
