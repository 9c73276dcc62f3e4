// SPDX-License-Identifier: Apache-2.0

package security

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// proxyPorts are those that a proxy or its process listens on, somewhere.
var proxyPorts = []uint16{
	mesh.PortAdmin, mesh.PortOutbound, mesh.PortPlaintext, mesh.PortHBONE, mesh.PortMetrics, mesh.PortReadiness, mesh.PortDNS,
}

// malicious is one call that must not be answered.
type malicious struct {
	from string
	host string
	what string
	port uint16
}

var _ = Describe("a proxy's own ports", func() {
	It("answer no application, its own or another's, by whatever address it calls them", Label("SE-01"), func(ctx SpecContext) {
		web, stock := w.Pod("shop/web"), w.Pod("shop/stock")
		zt := w.Now(ctx, "istio-system/ztunnel-"+web.Node)
		evil := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "evil"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "stock"}}}
		for _, port := range proxyPorts { // a service that leads to them: anybody may write one
			evil.Spec.Ports = append(evil.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", port), Port: int32(port)})
		}
		DeferCleanup(func(ctx SpecContext) { Expect(w.Delete(ctx, evil)).To(Succeed()) })
		Expect(w.Establish(ctx, evil)).To(Succeed())
		Eventually(func(ctx SpecContext) (string, error) { // the cluster's own DNS has its own time
			r, err := w.Resolve(ctx, w.Pod("plain/batch").PodRef, "evil.shop.svc.cluster.local", workload.ResolveOptions{})
			return r.Rcode, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(Equal("NOERROR"))

		var calls []malicious
		add := func(from, what, host string) {
			for _, port := range proxyPorts {
				calls = append(calls, malicious{from, host, what, port})
			}
		}
		add("shop/web", "loopback", "127.0.0.1")
		add("shop/web", "loopback", "::1")
		add("shop/web", "its own address", web.Addr(false).String())
		add("shop/web", "its own address", web.Addr(true).String())
		add("shop/web", "its own service", "web.shop")
		add("shop/web", "another pod", stock.Addr(false).String())
		add("shop/web", "another pod", stock.Addr(true).String())
		add("shop/web", "another's service", "stock.shop")
		add("shop/web", "a service made for it", "evil.shop")
		add("shop/web", "a pod outside the mesh", w.Pod("plain/legacy-0").Addr(false).String())
		add("shop/web", "its ztunnel", zt.Addr(false).String())
		add("plain/batch", "a pod of the mesh", web.Addr(false).String())
		add("plain/batch", "a pod of the mesh", stock.Addr(true).String())
		add("plain/batch", "a service made for it", "evil.shop")
		calls = append(calls, malicious{"shop/web", stock.Addr(false).String(), "a listener on another pod's loopback", 8090})

		began := time.Now()
		for c, got := range callAll(ctx, calls) {
			// What a ztunnel serves on its own address is for everybody: scrapers and kubelet.
			public := c.what == "its ztunnel" && (c.port == mesh.PortMetrics || c.port == mesh.PortReadiness)
			Expect(got.Status != 0).To(Equal(public), "%s calls %s at %s port %d: status %d, %s %s", c.from, c.what, c.host, c.port, got.Status, got.Class, got.Error)
			Expect(got.Class).NotTo(Equal(workload.ClassResolve), "control: %s has an address", c.host)
		}
		Eventually(selfCalls).WithContext(ctx).WithArguments(began, 2*len(calls)).WithTimeout(world.Budget.Evidence).
			Should(BeNumerically(">=", 8), "control: the guards were met, on every way in")
		after, err := w.Observe(ctx, web, url(stock), workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(after).To(expect.Tunnelled(), "and the proxies go on")
	}, SpecTimeout(world.Budget.Spec))
})

// selfCalls counts the calls that a proxy recognised as to itself, among no more records than most of each node.
func selfCalls(ctx SpecContext, since time.Time, most int) (n int, err error) {
	GinkgoHelper()
	for _, node := range w.Nodes() {
		entries, err := w.Entries(ctx, node, since)
		if err != nil {
			return 0, err
		}
		Expect(len(entries)).To(BeNumerically("<=", most), "a call that called itself again and again")
		for _, e := range entries {
			if strings.Contains(e.Error, "self call") {
				n++
			}
		}
	}
	return n, nil
}

// callAll makes calls, some at a time.
func callAll(ctx SpecContext, calls []malicious) map[malicious]workload.Call {
	GinkgoHelper()
	var mu sync.Mutex
	out := map[malicious]workload.Call{}
	var g errgroup.Group
	g.SetLimit(8)
	for _, c := range calls {
		g.Go(func() error {
			ns, name, _ := strings.Cut(c.from, "/")
			url := "http://" + net.JoinHostPort(c.host, strconv.Itoa(int(c.port)))
			res, err := w.Call(ctx, lab.PodRef{Namespace: ns, Name: name}, url, workload.Options{Timeout: time.Second})
			mu.Lock()
			defer mu.Unlock()
			out[c] = res.First()
			return err
		})
	}
	Expect(g.Wait()).To(Succeed())
	return out
}
