// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

func TestResolve(t *testing.T) {
	var asked atomic.Int32
	answered := zoneOf("host.example.org. 30 IN A 192.0.2.1")
	r := newRig(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		answered(w, q)
	}, func(_ *Config, _ *fakeMesh, f *fakeTransport) {
		f.fallback = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
	})
	for range 2 {
		if a, err := r.server.Resolve(t.Context(), "host.example.org", false); err != nil || a != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("got %s, %v", a, err)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("one question was asked %d times", asked.Load())
	}
	if a, err := r.server.Resolve(t.Context(), "host.example.org", true); !errors.Is(err, ErrNoAddress) {
		t.Errorf("the other family: got %s, %v", a, err)
	}
	if a, err := r.server.Resolve(t.Context(), "api.example.com", false); !errors.Is(err, ErrNoAddress) {
		t.Errorf("a name that only the mesh has: got %s, %v", a, err)
	}
}
