// SPDX-License-Identifier: Apache-2.0

package nodenet_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// A cluster with many services is one transaction too, also for an ordinary user, whose socket holds few answers.
func TestManyServicesAreOneTransaction(t *testing.T) {
	c := nodenet.Config{
		Self: nodenet.Host{
			Name: "node1", Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.2")},
			PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")},
		},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	}
	for i := range 200 {
		s := nodenet.Service{Name: fmt.Sprintf("shop/s%d", i), VIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, byte(i)})}}
		for port := range uint16(2) {
			s.Ports = append(s.Ports, nodenet.ServicePort{
				Port: 80 + port, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.244.0.2:8080"), netip.MustParseAddrPort("10.244.0.3:8080")},
			})
		}
		c.Services = append(c.Services, s)
	}
	n, p := alone(t, c.Self), plan(t, c)
	if !apply(t, n, p) {
		t.Error("nothing was applied")
	}
	if apply(t, n, p) {
		t.Error("the second Apply changed something")
	}
}
