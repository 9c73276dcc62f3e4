// SPDX-License-Identifier: Apache-2.0

// Package dns holds the scenarios about names: what a pod of the mesh is told, by whom, and what becomes of every query that
// the mesh does not answer itself. The control of each is a pod outside the mesh, which the cluster's DNS alone answers.
package dns

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var w = world.Shared()

// Pods of the suite's lab: two whose queries are captured, of two namespaces, and one outside the mesh.
const (
	inside  = "shop/web"
	guest   = "plain/optin"
	outside = "plain/batch"
)

type options = workload.ResolveOptions

func resolve(ctx context.Context, l *world.World, from, name string, o options) workload.Resolution {
	GinkgoHelper()
	r, err := l.Resolve(ctx, l.Pod(from).PodRef, name, o)
	Expect(err).NotTo(HaveOccurred())
	return r
}

// told is the answer to the pod inside, and whether the mesh gave it itself or passed it on, by the counters of its ztunnel.
func told(ctx context.Context, name string, o options) (r workload.Resolution, passedOn bool) {
	GinkgoHelper()
	pod := w.Pod(inside)
	before, err := w.Scrape(ctx, pod.Node)
	Expect(err).NotTo(HaveOccurred())
	r = resolve(ctx, w, inside, name, o)
	after, err := w.Scrape(ctx, pod.Node)
	Expect(err).NotTo(HaveOccurred())
	diff := after.Since(before, "istio_dns_")
	Expect(diff.Sum("istio_dns_requests_total", nil)).To(BeNumerically(">=", 1), "the mesh saw no query for %s", name)
	return r, diff.Sum("istio_dns_upstream_requests_total", nil) > 0
}

// untouched asks from a pod outside the mesh, and checks that no ztunnel saw it.
func untouched(ctx context.Context, name string, o options) workload.Resolution {
	GinkgoHelper()
	node := w.Pod(outside).Node
	before, err := w.Scrape(ctx, node)
	Expect(err).NotTo(HaveOccurred())
	r := resolve(ctx, w, outside, name, o)
	after, err := w.Scrape(ctx, node)
	Expect(err).NotTo(HaveOccurred())
	Expect(after.Since(before, "istio_dns_").Sum("istio_dns_requests_total", nil)).To(BeZero(), "control: out of the mesh, its ztunnel takes no part")
	return r
}

// serve runs a name server in a pod until the scenario ends.
func serve(ctx context.Context, l *world.World, pod string, args ...string) {
	GinkgoHelper()
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	out, in := io.Pipe()
	ended := make(chan struct{})
	var why strings.Builder
	go func() {
		defer close(ended)
		_, err := l.Exec(run, l.Pod(pod).PodRef, append([]string{"workload", "dns"}, args...), lab.Stdio{Out: in, Err: &why})
		_ = in.CloseWithError(fmt.Errorf("it ended: %w %s", err, why.String()))
	}()
	DeferCleanup(func() {
		stop()
		_ = out.Close()
		<-ended
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	Expect(err).NotTo(HaveOccurred(), "the name server in %s", pod)
	Expect(strings.TrimSpace(line)).To(Equal("ready"))
}

// apply makes objects, which every proxy knows from then on, for the time of a scenario.
func apply(ctx context.Context, objects ...runtime.Object) {
	GinkgoHelper()
	DeferCleanup(func(ctx context.Context) error { return w.Delete(ctx, objects...) }, NodeTimeout(world.Budget.Spec))
	Expect(w.Establish(ctx, objects...)).To(Succeed())
}

// eventually waits until the answer that the pod inside gets is as wanted, and returns it.
func eventually(ctx context.Context, l *world.World, name string, o options, wanted func(workload.Resolution) bool) workload.Resolution {
	GinkgoHelper()
	var last workload.Resolution
	err := world.Wait(ctx, world.Budget.Propagation, func(ctx context.Context) (bool, error) {
		r, err := l.Resolve(ctx, l.Pod(inside).PodRef, name, o)
		last = r
		return err == nil && wanted(r), err
	})
	Expect(err).NotTo(HaveOccurred(), "%s is still told %+v", inside, last)
	return last
}

// known wants one IPv4 address.
func known(r workload.Resolution) bool { return r.Rcode == "NOERROR" && len(r.Data("A")) == 1 }

// sorted are an answer's addresses in an order that can be compared.
func sorted(r workload.Resolution, kind string) []string {
	return slices.Sorted(slices.Values(r.Data(kind)))
}

// of are a pod's addresses of one family.
func of(p lab.PodInfo, kind string) []string {
	var out []string
	for _, a := range p.IPs {
		if a.Is6() == (kind == "AAAA") {
			out = append(out, a.String())
		}
	}
	return out
}

var _ = Describe("names of the mesh", func() {
	It("answers a service under every name that it has, in both families, as the cluster's DNS does", Label("DN-01"), func(ctx SpecContext) {
		const full = "cart.shop.svc.cluster.local"
		for _, kind := range []string{"A", "AAAA"} {
			want := untouched(ctx, full, options{Type: kind}).Data(kind)
			Expect(want).To(HaveLen(1))
			for _, name := range []string{full, full + ".", "CART.shop.svc.cluster.local", "cart.shop.svc", "cart.shop", "cart"} {
				r, passedOn := told(ctx, name, options{Type: kind})
				Expect(passedOn).To(BeFalse(), "%s is the mesh's own", name)
				Expect(r.Data(kind)).To(Equal(want), "%s: %+v", name, r)
			}
			r, passedOn := told(ctx, "cart", options{Type: kind, Search: true})
			Expect(passedOn).To(BeFalse())
			Expect(r.Name).To(Equal(full+"."), "by the pod's search domains")
			Expect(r.Data(kind)).To(Equal(want))
		}
		short := untouched(ctx, "cart", options{})
		Expect(short.Rcode).To(Equal("NXDOMAIN"), "control: the cluster's DNS knows full names only: %+v", short)

		r, passedOn := told(ctx, "cart.shop.svc.cluster.local.shop.svc.cluster.local", options{})
		Expect(passedOn).To(BeFalse(), "a search domain too many costs no round trip")
		Expect(r.Data("CNAME")).To(ConsistOf(full + "."))
		Expect(r.Data("A")).To(HaveLen(1))
	}, SpecTimeout(world.Budget.Spec))

	It("answers a headless service with its pods, and each of them by name", Label("DN-01"), func(ctx SpecContext) {
		for _, kind := range []string{"A", "AAAA"} {
			var want []string
			for _, pod := range []string{"shop/cart-0", "shop/cart-1", "shop/cart-2"} {
				want = append(want, of(w.Pod(pod), kind)...)
			}
			slices.Sort(want)
			r, passedOn := told(ctx, "cart-headless.shop.svc.cluster.local", options{Type: kind})
			Expect(passedOn).To(BeFalse())
			Expect(sorted(r, kind)).To(Equal(want))
			Expect(sorted(untouched(ctx, "cart-headless.shop.svc.cluster.local", options{Type: kind}), kind)).To(Equal(want), "control: the cluster's DNS says the same")

			r, passedOn = told(ctx, "cart-1.cart-headless", options{Type: kind})
			Expect(passedOn).To(BeFalse())
			Expect(r.Data(kind)).To(Equal(of(w.Pod("shop/cart-1"), kind)))
		}
		r, passedOn := told(ctx, "cart-9.cart-headless.shop.svc.cluster.local", options{})
		Expect(passedOn).To(BeTrue(), "whether a pod that the mesh does not know exists is the cluster's to say")
		Expect(r.Rcode).To(Equal("NXDOMAIN"))
	}, SpecTimeout(world.Budget.Spec))

	It("tells a name that does not exist from one that has no such address", Label("DN-01"), func(ctx SpecContext) {
		for _, name := range []string{"missing.shop.svc.cluster.local", "missing.example"} {
			r, passedOn := told(ctx, name, options{})
			Expect(passedOn).To(BeTrue())
			Expect(r.Rcode).To(Equal("NXDOMAIN"))
		}
		apply(ctx, entryOf("four", "shop", []string{"four.test"}, []string{"240.240.200.4"}))
		Expect(known(resolve(ctx, w, inside, "four.test", options{}))).To(BeTrue())
		r, passedOn := told(ctx, "four.test", options{Type: "AAAA"})
		Expect(passedOn).To(BeFalse())
		Expect(r.Rcode).To(Equal("NOERROR"), "a denial would make clients give the name up: %+v", r)
		Expect(r.Answers).To(BeEmpty())
		r, passedOn = told(ctx, "four.test", options{Type: "TXT"})
		Expect(passedOn).To(BeTrue())
		Expect(r.Rcode).To(Equal("NOERROR"), "the cluster's DNS denies the name, which the mesh knows better: %+v", r)
		Expect(untouched(ctx, "four.test", options{Type: "TXT"}).Rcode).To(Equal("NXDOMAIN"), "control")
	}, SpecTimeout(world.Budget.Spec))

	// istio/istio#54278: an ExternalName was answered NXDOMAIN.
	It("follows an ExternalName, and covers names by a wildcard", Label("DN-01"), func(ctx SpecContext) {
		apply(ctx, externalName("alias", "shop", "unknown.external"), entryOf("wild", "shop", []string{"*.wild.test"}, []string{"240.240.200.5"}))
		r := eventually(ctx, w, "alias.shop.svc.cluster.local", options{}, known)
		Expect(r.Data("CNAME")).To(ConsistOf("unknown.external."))
		Expect(r.Data("A")).To(Equal(untouched(ctx, "alias.shop.svc.cluster.local", options{}).Data("A")))

		for _, name := range []string{"x.wild.test", "x.y.wild.test"} {
			Expect(resolve(ctx, w, inside, name, options{}).Data("A")).To(ConsistOf("240.240.200.5"))
			Expect(untouched(ctx, name, options{}).Rcode).To(Equal("NXDOMAIN"), "control: the cluster's DNS has no such name")
		}
		r, passedOn := told(ctx, "wild.test", options{})
		Expect(passedOn).To(BeTrue(), "a wildcard does not cover the name that it stands under")
		Expect(r.Rcode).To(Equal("NXDOMAIN"))
	}, SpecTimeout(world.Budget.Spec))
})
