// SPDX-License-Identifier: Apache-2.0

// Package traffic holds the scenarios about bytes that must arrive: who reaches whom, over which path, and how
// connections begin, end and carry load.
package traffic

import (
	"fmt"
	"net/netip"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"

	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var w = world.Shared()

// pair is a client and a server; the service is the server's own.
type pair struct {
	where    string
	from, to string
	service  string
	path     func() types.GomegaMatcher // the only path that is right
	ids      []string                   // besides the matrix's own
}

// Every combination of captured and not, on one node and across two.
var pairs = []pair{
	{"captured to captured, same node", "shop/web", "shop/cart-0", "cart.shop", expect.Tunnelled, []string{"ID-02"}},
	{"captured to captured, other node", "shop/web", "shop/stock", "stock.shop", expect.Tunnelled, []string{"ID-02"}},
	{"captured to not captured, same node", "shop/web", "plain/legacy-0", "legacy.plain", expect.PlainOutbound, []string{"TR-04"}},
	{"captured to not captured, other node", "shop/web", "plain/ledger", "ledger.plain", expect.PlainOutbound, []string{"TR-04"}},
	{"captured to opted out, other node", "shop/web", "shop/optout", "optout.shop", expect.PlainOutbound, []string{"TR-04"}},
	{"not captured to captured, same node", "plain/batch", "shop/web", "web.shop", expect.PlainInbound, []string{"TR-04"}},
	{"not captured to captured, other node", "plain/batch", "shop/stock", "stock.shop", expect.PlainInbound, []string{"TR-04"}},
	{"not captured to opted in, other node", "plain/batch", "plain/optin", "optin.plain", expect.PlainInbound, []string{"TR-04"}},
	{"not captured to not captured, same node", "plain/batch", "plain/legacy-0", "legacy.plain", expect.Direct, nil},
	{"not captured to not captured, other node", "plain/batch", "plain/ledger", "ledger.plain", expect.Direct, nil},
}

// protocols are what every server speaks, with the service's and the pod's port.
var protocols = []struct {
	scheme           string
	servicePort, pod uint16
}{
	{"http", 80, 8080}, {"h2c", 8081, 8081}, {"grpc", 8082, 8082}, {"https", 443, 8443}, {"ws", 80, 8080},
	{"tcp", 9000, 9000}, {"tcp-first", 9001, 9001},
}

var families = []struct {
	name string
	v6   bool
	num  int
	need lab.Capability
}{{"IPv4", false, 4, lab.CapIPv4}, {"IPv6", true, 6, lab.CapIPv6}}

// stranger is a client whose calls must not take the pair's path: captured if the pair's client is not, and the reverse.
func (p pair) stranger() string {
	if strings.HasPrefix(p.from, "shop/") {
		return "plain/batch"
	}
	return "shop/mobile"
}

var _ = Describe("reachability", func() {
	for _, p := range pairs {
		for _, f := range families {
			It(fmt.Sprintf("reaches a service, %s, %s", p.where, f.name), Label("TR-01", "TR-03", "OB-01"), Label(p.ids...), func(ctx SpecContext) {
				w.Needs(f.need)
				for _, proto := range protocols {
					url := fmt.Sprintf("%s://%s:%d", proto.scheme, p.service, proto.servicePort)
					obs := observe(ctx, p.from, url, workload.Options{Family: f.num})
					Expect(obs).To(p.path(), url)
					Expect(obs.To.Labels["app"]).To(Equal(w.Pod(p.to).Labels["app"]), url)
				}
				url := fmt.Sprintf("http://%s:80", p.service)
				Expect(observe(ctx, p.stranger(), url, workload.Options{Family: f.num})).NotTo(p.path(), "control: another kind of client takes another path")
			}, SpecTimeout(world.Budget.Spec))

			It(fmt.Sprintf("reaches a pod by its address, %s, %s", p.where, f.name), Label("TR-02", "TR-03"), Label(p.ids...), func(ctx SpecContext) {
				w.Needs(f.need)
				for _, proto := range protocols {
					url := fmt.Sprintf("%s://%s", proto.scheme, at(w.Pod(p.to), f.v6, proto.pod))
					obs := observe(ctx, p.from, url, workload.Options{})
					Expect(obs).To(p.path(), url)
					Expect(obs.To.PodRef).To(Equal(w.Pod(p.to).PodRef), url)
				}
				url := fmt.Sprintf("http://%s", at(w.Pod(p.to), f.v6, 8080))
				Expect(observe(ctx, p.stranger(), url, workload.Options{})).NotTo(p.path(), "control: another kind of client takes another path")
			}, SpecTimeout(world.Budget.Spec))
		}
	}
})

func observe(ctx SpecContext, from, url string, o workload.Options) *world.Observation {
	GinkgoHelper()
	obs, err := w.Observe(ctx, w.Pod(from), url, o)
	Expect(err).NotTo(HaveOccurred(), "%s -> %s\n%v", from, url, obs)
	return obs
}

func at(p lab.PodInfo, v6 bool, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.Addr(v6), port)
}

func hostPort(addr string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
}
