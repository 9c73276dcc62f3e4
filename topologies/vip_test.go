// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAllocator(t *testing.T) {
	a := NewAllocator([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/27"), netip.MustParsePrefix("fd00::/112")})
	if !a.Reserve(netip.MustParseAddr("fd00::11")) || a.Reserve(netip.MustParseAddr("fd00::11")) {
		t.Error("Reserve does not tell the first from the second")
	}
	next := func() (out []string) {
		ips, err := a.Allocate()
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range ips {
			out = append(out, ip.String())
		}
		return out
	}
	if diff := cmp.Diff([]string{"10.0.0.16", "fd00::10"}, next()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"10.0.0.18", "fd00::12"}, next()); diff != "" {
		t.Errorf("the reserved offset was not skipped: %s", diff)
	}
	for range 12 { // 19..30
		next()
	}
	if ips, err := a.Allocate(); err == nil {
		t.Errorf("a full range gave %v", ips)
	}
	a.Release(netip.MustParseAddr("10.0.0.20"), netip.MustParseAddr("fd00::14"))
	if diff := cmp.Diff([]string{"10.0.0.20", "fd00::14"}, next()); diff != "" {
		t.Errorf("a released pair was not reused: %s", diff)
	}
}
