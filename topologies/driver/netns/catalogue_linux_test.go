// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// looks are what is particular to a topology of the catalogue.
var looks = map[string]func(*testing.T, *lab.Lab){
	"dual-stack": lookDualStack, "ipv6": lookIPv6, "mixed-mtu": lookMixedMTU, "two-networks": lookTwoNetworks,
}

// Every topology of the catalogue stands: all pods run, and those that are to be enrolled are.
func TestCatalogueStands(t *testing.T) {
	binariesForTest(t)
	for _, name := range topologies.Catalogue() {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			l := up(t, open(t, name))
			pods, err := l.Pods(within(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d pods on %d nodes after %.1f s", len(pods), len(l.Spec.Clusters[0].Nodes), time.Since(began).Seconds())
			lookAtPods(t, l.Spec, pods)
			if look := looks[name]; look != nil {
				look(t, l)
			}
		})
	}
}

func lookAtPods(t *testing.T, spec *topologies.Spec, pods []lab.PodInfo) {
	t.Helper()
	c := &spec.Clusters[0]
	want := 1 + len(c.Nodes) // the mesh's own
	for _, w := range c.Workloads {
		want += w.Replicas
	}
	if len(pods) != want {
		t.Errorf("%d pods, want %d", len(pods), want)
	}
	for _, p := range pods {
		ambient := p.Labels[mesh.LabelDataplaneMode] == mesh.ModeAmbient
		if _, said := p.Labels[mesh.LabelDataplaneMode]; !said {
			ambient = slices.ContainsFunc(c.Namespaces, func(n topologies.Namespace) bool {
				return n.Name == p.Namespace && n.Labels[mesh.LabelDataplaneMode] == mesh.ModeAmbient
			})
		}
		families := 1
		if c.IPFamily == topologies.Dual {
			families = 2
		}
		if !p.Ready || p.Enrolled != ambient || len(p.IPs) != families {
			t.Errorf("pod %s: ready %v, enrolled %v, addresses %v, problem %q", p, p.Ready, p.Enrolled, p.IPs, p.Problem)
		}
	}
}

func call(t *testing.T, l *lab.Lab, from, url string, o workload.Options) workload.Call {
	t.Helper()
	ns, name, _ := strings.Cut(from, "/")
	o.Timeout = 5 * time.Second
	res, err := l.Call(within(t), lab.PodRef{Namespace: ns, Name: name}, url, o)
	if err != nil {
		t.Fatal(err)
	}
	return res.First()
}

func address(t *testing.T, l *lab.Lab, pod string, v6 bool, port uint16) netip.AddrPort {
	t.Helper()
	ns, name, _ := strings.Cut(pod, "/")
	p, err := l.Find(within(t), lab.PodRef{Namespace: ns, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(p.Addr(v6), port)
}

// zlog is what a node's ztunnel has logged.
func zlog(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	r, err := l.Daemon(node, lab.DaemonZtunnel).Logs(within(t), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A service is reached by the families that it has and by no other; which comes first is its own business (istio/istio#52895).
func lookDualStack(t *testing.T, l *lab.Lab) {
	for host, families := range map[string][]int{"cart": {4, 6}, "cart-v4": {4}, "cart-v6": {6}, "cart-v6-first": {6, 4}} {
		for _, family := range []int{4, 6} {
			for _, from := range []string{"shop/web", "plain/batch"} {
				c := call(t, l, from, "http://"+host+".shop:80", workload.Options{Family: family})
				if c.OK != slices.Contains(families, family) || (c.OK && c.Seen.RemoteAddr.Addr().Is6() != (family == 6)) {
					t.Errorf("%s to %s by IPv%d: ok %v, %s; it has %v", from, host, family, c.OK, c.Error, families)
				}
			}
		}
	}
}

func lookIPv6(t *testing.T, l *lab.Lab) {
	for _, from := range []string{"shop/web", "plain/batch"} {
		if c := call(t, l, from, "http://cart.shop:80", workload.Options{}); !c.OK || !c.Seen.RemoteAddr.Addr().Is6() {
			t.Errorf("%s: %+v", from, c)
		}
	}
	if c := call(t, l, "shop/web", "http://cart.shop:80", workload.Options{Family: 4}); c.OK {
		t.Errorf("the service has an IPv4 address: %+v", c)
	}
	if log := zlog(t, l, "node1"); !strings.Contains(log, "dst.hbone_addr") {
		t.Error("no call of the captured pod was tunnelled")
	}
}

// MTUs are those that the topology says, on the pods' links, the nodes' and the path between two.
func lookMixedMTU(t *testing.T, l *lab.Lab) {
	for target, want := range map[lab.Target]string{
		{Pod: lab.PodRef{Namespace: "shop", Name: "web"}}:   "mtu 9000",
		{Pod: lab.PodRef{Namespace: "shop", Name: "stock"}}: "mtu 1280",
		{Node: "jumbo1"}: "mtu 1400", {Node: "small"}: "mtu 1280",
	} {
		in, err := l.Inspect(within(t), target)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(in.Links+in.Routes, want) {
			t.Errorf("%s: no %q in\n%s%s", target, want, in.Links, in.Routes)
		}
	}
}

// Without a gateway, what is in another network cannot be reached: the mesh refuses its services and says why, and to its pods
// there is no route. In each network by itself everything works.
func lookTwoNetworks(t *testing.T, l *lab.Lab) {
	for from, near := range map[string]string{"shop/web": "near", "plain/batch": "near", "shop/mobile": "stock"} {
		far := map[string]string{"near": "stock", "stock": "near"}[near]
		if c := call(t, l, from, fmt.Sprintf("http://%s.shop:80", near), workload.Options{}); !c.OK {
			t.Errorf("%s to %s in its own network: %s", from, near, c.Error)
		}
		for _, v6 := range []bool{false, true} {
			if c := call(t, l, from, fmt.Sprintf("http://%s", address(t, l, "shop/"+far, v6, 8080)), workload.Options{}); c.OK {
				t.Errorf("%s reached the pod of %s in the other network", from, far)
			}
		}
		if c := call(t, l, from, fmt.Sprintf("http://%s.shop:80", far), workload.Options{}); c.OK {
			t.Errorf("%s reached %s in the other network", from, far)
		}
	}
	eventually(t, "the refusal is logged with its reason", func() bool {
		return strings.Contains(zlog(t, l, "node1"), `is in network \"network-b\": network gateways are not supported yet`) &&
			strings.Contains(zlog(t, l, "node2"), `is in network \"network-a\": network gateways are not supported yet`)
	})
}
