// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// field is one field of a rule, and which callers match it: web of namespace shop and guest of namespace plain come over
// HBONE, batch in plain text.
type field struct {
	name    string
	rule    func(f *fixture, r *securityapi.Rule)
	matches []string
}

func source(fill func(f *fixture, s *securityapi.Source)) func(*fixture, *securityapi.Rule) {
	return func(f *fixture, r *securityapi.Rule) {
		s := &securityapi.Source{}
		fill(f, s)
		r.From = []*securityapi.Rule_From{{Source: s}}
	}
}

func when(key string, values, notValues func(f *fixture) []string) func(*fixture, *securityapi.Rule) {
	return func(f *fixture, r *securityapi.Rule) {
		c := &securityapi.Condition{Key: key}
		if values != nil {
			c.Values = values(f)
		}
		if notValues != nil {
			c.NotValues = notValues(f)
		}
		r.When = []*securityapi.Condition{c}
	}
}

var (
	webAddrs   = func(f *fixture) []string { return addresses(f.web) }
	vaultAddrs = func(f *fixture) []string { return addresses(f.vault) }
)

var fields = []field{
	{"principals", source(func(f *fixture, s *securityapi.Source) { s.Principals = []string{expect.Identity(f.web).Principal()} }), []string{"web"}},
	{"notPrincipals", source(func(f *fixture, s *securityapi.Source) {
		s.NotPrincipals = []string{expect.Identity(f.web).Principal()}
	}), []string{"guest", "batch"}},
	{"principals, prefix", source(func(_ *fixture, s *securityapi.Source) { s.Principals = []string{"cluster.local/ns/shop/*"} }), []string{"web"}},
	{"principals, suffix", source(func(_ *fixture, s *securityapi.Source) { s.Principals = []string{"*/sa/guest"} }), []string{"guest"}},
	{"principals, presence", source(func(_ *fixture, s *securityapi.Source) { s.Principals = []string{"*"} }), []string{"web", "guest"}},
	{"notPrincipals, presence", source(func(_ *fixture, s *securityapi.Source) { s.NotPrincipals = []string{"*"} }), []string{"batch"}},
	{"namespaces", source(func(_ *fixture, s *securityapi.Source) { s.Namespaces = []string{"plain"} }), []string{"guest"}}, // batch proves none
	{"notNamespaces", source(func(_ *fixture, s *securityapi.Source) { s.NotNamespaces = []string{"plain"} }), []string{"web", "batch"}},
	{"serviceAccounts", source(func(_ *fixture, s *securityapi.Source) { s.ServiceAccounts = []string{"plain/guest"} }), []string{"guest"}},
	{"notServiceAccounts", source(func(_ *fixture, s *securityapi.Source) { s.NotServiceAccounts = []string{"web"} }), []string{"guest", "batch"}},
	{"ipBlocks", source(func(f *fixture, s *securityapi.Source) { s.IpBlocks = addresses(f.web) }), []string{"web"}},
	{"notIpBlocks", source(func(f *fixture, s *securityapi.Source) { s.NotIpBlocks = addresses(f.web) }), []string{"guest", "batch"}},
	{"when source.ip", when("source.ip", webAddrs, nil), []string{"web"}},
	{"when source.namespace", when("source.namespace", nil, func(*fixture) []string { return []string{"shop"} }), []string{"guest", "batch"}},
	{"when source.principal", when("source.principal", func(*fixture) []string { return []string{"*/sa/web"} }, nil), []string{"web"}},
	{"when destination.ip", when("destination.ip", vaultAddrs, nil), []string{"web", "guest", "batch"}},
	{"when not destination.ip", when("destination.ip", nil, vaultAddrs), nil},
	{"two fields at once", source(func(f *fixture, s *securityapi.Source) {
		s.Namespaces, s.NotPrincipals = []string{"shop", "plain"}, []string{expect.Identity(f.web).Principal()}
	}), []string{"guest"}},
}

// Ports of the server: one for each field and action, so that all of them are judged at once.
const (
	allowPorts = 7000
	denyPorts  = 7100
	notPort    = 7200 // named by a DENY of every port but the others
	openPort   = 7201 // named by no DENY, and by an ALLOW without a source
)

// fixture is a server that two policies guard, and its callers.
type fixture struct {
	l                        *world.World
	vault, web, guest, batch lab.PodInfo
}

func addresses(p lab.PodInfo) (out []string) {
	for _, ip := range p.IPs {
		out = append(out, ip.String())
	}
	return out
}

// newFixture adds a server with a port per field, and a caller of another namespace.
func newFixture(ctx SpecContext) *fixture {
	GinkgoHelper()
	l := start(ctx)
	f := &fixture{l: l, web: l.Pod("shop/web"), batch: l.Pod("plain/batch")}
	vault := l.ClonePod("shop/cart", "vault")
	vault.Labels["app"] = "vault"
	vault.Spec.Containers[0].Command = []string{"workload", "serve"}
	for _, p := range f.ports() {
		vault.Spec.Containers[0].Command = append(vault.Spec.Containers[0].Command, "--http", p)
	}
	guest := l.ClonePod("plain/batch", "guest")
	guest.Labels = map[string]string{"app": "guest", mesh.LabelDataplaneMode: mesh.ModeAmbient}
	guest.Spec.ServiceAccountName = "guest"
	Expect(l.Apply(ctx, world.Account("plain", "guest"))).To(Succeed())
	joined, err := l.JoinAll(ctx, vault, guest)
	Expect(err).NotTo(HaveOccurred())
	f.vault, f.guest = joined[0], joined[1]
	return f
}

func (f *fixture) ports() (out []string) {
	for i := range fields {
		out = append(out, strconv.Itoa(allowPorts+i), strconv.Itoa(denyPorts+i))
	}
	return append(out, strconv.Itoa(notPort), strconv.Itoa(openPort))
}

// apply guards the server: an ALLOW with a rule for each field's port, and a DENY with another.
func (f *fixture) apply(ctx SpecContext) {
	GinkgoHelper()
	to := func(o *securityapi.Operation) []*securityapi.Rule_To { return []*securityapi.Rule_To{{Operation: o}} }
	allow := authorization("shop", "allow", func(p *securityapi.AuthorizationPolicy) {
		open := []string{strconv.Itoa(openPort), strconv.Itoa(notPort)}
		for i, field := range fields {
			r := &securityapi.Rule{To: to(&securityapi.Operation{Ports: []string{strconv.Itoa(allowPorts + i)}})}
			field.rule(f, r)
			p.Rules = append(p.Rules, r)
			open = append(open, strconv.Itoa(denyPorts+i))
		}
		p.Rules = append(p.Rules, &securityapi.Rule{To: to(&securityapi.Operation{Ports: open})})
	})
	deny := authorization("shop", "deny", func(p *securityapi.AuthorizationPolicy) {
		p.Action = securityapi.AuthorizationPolicy_DENY
		for i, field := range fields {
			r := &securityapi.Rule{To: to(&securityapi.Operation{Ports: []string{strconv.Itoa(denyPorts + i)}})}
			field.rule(f, r)
			p.Rules = append(p.Rules, r)
		}
		others := slices.DeleteFunc(f.ports(), func(p string) bool { return p == strconv.Itoa(notPort) })
		p.Rules = append(p.Rules, &securityapi.Rule{To: to(&securityapi.Operation{NotPorts: others})})
	})
	allow.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: map[string]string{"app": "vault"}}
	deny.Spec.Selector = allow.Spec.Selector
	apply(ctx, f.l, allow, deny)
	for _, o := range []*securityapi.AuthorizationPolicy{&allow.Spec, &deny.Spec} {
		Expect(o.Rules).To(HaveLen(len(fields) + 1))
	}
	for _, p := range []runtime.Object{allow, deny} {
		expectCondition(ctx, f.l, p, HaveField("Reason", "Accepted"))
	}
}

// verdict is one call and what must come of it.
type verdict struct {
	from  lab.PodRef
	what  string
	to    netip.AddrPort
	allow bool
}

func (f *fixture) verdicts() (out []verdict) {
	for name, from := range map[string]lab.PodInfo{"web": f.web, "guest": f.guest, "batch": f.batch} {
		add := func(what string, v6 bool, port int, allow bool) {
			out = append(out, verdict{from.PodRef, name + " " + what, netip.AddrPortFrom(f.vault.Addr(v6), uint16(port)), allow})
		}
		for i, field := range fields {
			matches := slices.Contains(field.matches, name)
			v6 := i%2 == 1
			add("ALLOW "+field.name, v6, allowPorts+i, matches)
			add("DENY "+field.name, !v6, denyPorts+i, !matches)
		}
		add("DENY notPorts", false, notPort, false)
		add("ALLOW ports", true, openPort, true)
	}
	return out
}

var _ = Describe("each field of a policy", func() {
	It("lets in whom it matches and refuses the others, over HBONE and in plain text, in both families", world.OwnLab, Label("P4-01"), func(ctx SpecContext) {
		f := newFixture(ctx)
		f.l.Needs(lab.CapIPv4, lab.CapIPv6)
		f.apply(ctx)
		before, err := f.l.Scrape(ctx, f.vault.Node)
		Expect(err).NotTo(HaveOccurred())
		verdicts := f.verdicts()
		want := map[string]float64{}
		for _, v := range verdicts {
			security := telemetry.MutualTLS
			if v.from == f.batch.PodRef {
				security = telemetry.SecurityUnknown
			}
			if v.allow {
				want["let in, "+security]++
			} else {
				want["refused, "+security]++
			}
		}
		for v, got := range judge(ctx, f.l, verdicts) {
			Expect(got.OK).To(Equal(v.allow), "%s at %s: %s %s", v.what, v.to, got.Class, got.Error)
		}
		Eventually(func(g Gomega, ctx SpecContext) {
			after, err := f.l.Scrape(ctx, f.vault.Node)
			g.Expect(err).NotTo(HaveOccurred())
			grown, got := after.Since(before, "istio_tcp_"), map[string]float64{}
			for _, security := range []string{telemetry.MutualTLS, telemetry.SecurityUnknown} {
				labels := map[string]string{"reporter": "destination", "destination_workload": "vault", "connection_security_policy": security}
				got["let in, "+security] = grown.Sum(world.Closed, labels)
				labels["response_flags"] = telemetry.FlagDeny
				got["refused, "+security] = grown.Sum(world.Failed, labels)
			}
			g.Expect(got).To(Equal(want), "what the destination's ztunnel counted")
		}).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(Succeed())
	}, SpecTimeout(world.Budget.Spec))
})

// judge makes the calls, some at a time.
func judge(ctx SpecContext, l *world.World, verdicts []verdict) map[verdict]workload.Call {
	GinkgoHelper()
	var mu sync.Mutex
	out := map[verdict]workload.Call{}
	var g errgroup.Group
	g.SetLimit(6)
	for _, v := range verdicts {
		g.Go(func() error {
			res, err := l.Call(ctx, v.from, fmt.Sprintf("http://%s", v.to), workload.Options{Timeout: world.Budget.Call})
			mu.Lock()
			defer mu.Unlock()
			out[v] = res.First()
			return err
		})
	}
	Expect(g.Wait()).To(Succeed())
	return out
}
