// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	security "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/catalog"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/xds"
)

const modelRoot = "root"

// model says what Istio's API promises for policies of L4 fields alone, one sentence at a time: it knows neither scopes
// nor clauses, only objects, the labels of the workload and the connection.
type model struct {
	authorization []*securityv1.AuthorizationPolicy
	peers         []*securityv1.PeerAuthentication
	namespace     string
	labels        map[string]string
}

func (m model) allows(c authz.Connection) bool {
	if c.Source.IsZero() && m.mode(c.Dst.Port()) == security.PeerAuthentication_MutualTLS_STRICT {
		return false
	}
	allowed, exists := false, false
	for _, p := range m.authorization {
		if !m.covers(p.Namespace, p.Spec.GetSelector()) || len(p.Spec.GetTargetRefs()) > 0 || p.Annotations[annotationDryRun] == "true" {
			continue
		}
		matches := slices.ContainsFunc(p.Spec.GetRules(), func(r *security.Rule) bool { return modelRule(r, p.Namespace, c) })
		switch p.Spec.GetAction() {
		case security.AuthorizationPolicy_DENY:
			if matches {
				return false
			}
		case security.AuthorizationPolicy_ALLOW:
			exists, allowed = true, allowed || matches
		}
	}
	return allowed || !exists
}

// covers: a policy covers its own namespace, one of the root namespace all of them, a selector narrows that down.
func (m model) covers(namespace string, s *apitype.WorkloadSelector) bool {
	for k, v := range s.GetMatchLabels() {
		if m.labels[k] != v {
			return false
		}
	}
	return namespace == m.namespace || namespace == modelRoot
}

// mode: port before workload before namespace before mesh; of one rank the oldest; ambient knows no selector in the root
// namespace.
func (m model) mode(port uint16) security.PeerAuthentication_MutualTLS_Mode {
	const unset = security.PeerAuthentication_MutualTLS_UNSET
	for _, rank := range []func(p *securityv1.PeerAuthentication) bool{
		func(p *securityv1.PeerAuthentication) bool { return p.Spec.Selector != nil && p.Namespace != modelRoot },
		func(p *securityv1.PeerAuthentication) bool { return p.Spec.Selector == nil && p.Namespace != modelRoot },
		func(p *securityv1.PeerAuthentication) bool { return p.Spec.Selector == nil && p.Namespace == modelRoot },
	} {
		var of []*securityv1.PeerAuthentication
		for _, p := range m.peers {
			if rank(p) && m.covers(p.Namespace, p.Spec.GetSelector()) {
				of = append(of, p)
			}
		}
		if len(of) == 0 {
			continue
		}
		slices.SortFunc(of, func(a, b *securityv1.PeerAuthentication) int {
			if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
				return c
			}
			return strings.Compare(a.Name, b.Name)
		})
		if mode := of[0].Spec.GetPortLevelMtls()[uint32(port)].GetMode(); mode != unset {
			return mode
		}
		if mode := of[0].Spec.GetMtls().GetMode(); mode != unset {
			return mode
		}
	}
	return security.PeerAuthentication_MutualTLS_PERMISSIVE
}

func modelRule(r *security.Rule, namespace string, c authz.Connection) bool {
	from := len(r.GetFrom()) == 0
	for _, f := range r.GetFrom() {
		s := f.GetSource()
		account := func(v string) bool {
			if !strings.Contains(v, "/") {
				v = namespace + "/" + v
			}
			return !c.Source.IsZero() && v == c.Source.Namespace+"/"+c.Source.ServiceAccount
		}
		from = from || field2(s.GetPrincipals(), s.GetNotPrincipals(), glob(modelPrincipal(c))) &&
			field2(s.GetNamespaces(), s.GetNotNamespaces(), glob(c.Source.Namespace)) &&
			field2(s.GetServiceAccounts(), s.GetNotServiceAccounts(), account) &&
			field2(s.GetIpBlocks(), s.GetNotIpBlocks(), inBlock(c.SrcIP))
	}
	to := len(r.GetTo()) == 0
	for _, o := range r.GetTo() {
		to = to || field2(o.GetOperation().GetPorts(), o.GetOperation().GetNotPorts(), isPort(c.Dst.Port()))
	}
	when := true
	for _, w := range r.GetWhen() {
		is := map[string]func(string) bool{
			"source.ip": inBlock(c.SrcIP), "source.namespace": glob(c.Source.Namespace), "source.principal": glob(modelPrincipal(c)),
			"destination.ip": inBlock(c.Dst.Addr()), "destination.port": isPort(c.Dst.Port()),
		}[w.GetKey()]
		when = when && field2(w.GetValues(), w.GetNotValues(), is)
	}
	return from && to && when
}

// field2 is a field and its opposite: any of these, if there are any, and none of those.
func field2(these, those []string, is func(string) bool) bool {
	return (len(these) == 0 || slices.ContainsFunc(these, is)) && !slices.ContainsFunc(those, is)
}

func modelPrincipal(c authz.Connection) string {
	return strings.TrimPrefix(c.Source.String(), "spiffe://")
}

func glob(value string) func(string) bool {
	return func(pattern string) bool {
		switch {
		case pattern == "*":
			return value != ""
		case strings.HasPrefix(pattern, "*"):
			return strings.HasSuffix(value, pattern[1:])
		case strings.HasSuffix(pattern, "*"):
			return strings.HasPrefix(value, pattern[:len(pattern)-1])
		default:
			return value == pattern
		}
	}
}

func inBlock(a netip.Addr) func(string) bool {
	return func(block string) bool {
		if p, err := netip.ParsePrefix(block); err == nil {
			return p.Contains(a)
		}
		return netip.MustParseAddr(block) == a
	}
}

func isPort(p uint16) func(string) bool {
	return func(s string) bool { return s == strconv.Itoa(int(p)) }
}

// draw makes objects and connections from few values, so that they meet.
type draw struct{ *rand.Rand }

func pick[T any](d draw, of ...T) T { return of[d.IntN(len(of))] }

func some[T any](d draw, of ...T) (out []T) {
	if d.IntN(3) == 0 {
		for range 1 + d.IntN(2) {
			out = append(out, pick(d, of...))
		}
	}
	return out
}

// meta names an object and says when it was made: often at the same time as another.
func (d draw) meta(i int) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: pick(d, "a", "ab", modelRoot), CreationTimestamp: metav1.NewTime(time.Unix(int64(1000+d.IntN(3)), 0))}
}

func (d draw) selector() *apitype.WorkloadSelector {
	if d.IntN(2) == 0 {
		return nil
	}
	s := &apitype.WorkloadSelector{MatchLabels: map[string]string{"app": pick(d, "x", "y")}}
	if d.IntN(3) == 0 {
		s.MatchLabels["version"] = "v1"
	}
	return s
}

var (
	drawPrincipals = []string{"*", "cluster.local/ns/a/sa/x", "cluster.local/ns/a*", "*/sa/x", "td/ns/a/sa/x", "*y", "td*"}
	drawNamespaces = []string{"*", "a", "ab", "a*", "*b", "b"}
	drawBlocks     = []string{"10.0.0.0/24", "10.0.0.1", "0.0.0.0/0", "fd00::/64", "fd00::1", "10.0.0.2/31"}
	drawPorts      = []string{"80", "8080", "9000"}
)

func (d draw) source() *security.Source {
	s := &security.Source{IpBlocks: some(d, drawBlocks...), NotIpBlocks: some(d, drawBlocks...)}
	if d.IntN(3) == 0 {
		s.ServiceAccounts, s.NotServiceAccounts = some(d, "x", "a/x", "ab/y"), some(d, "x", "a/x", "ab/y")
	} else {
		s.Principals, s.NotPrincipals = some(d, drawPrincipals...), some(d, drawPrincipals...)
		s.Namespaces, s.NotNamespaces = some(d, drawNamespaces...), some(d, drawNamespaces...)
	}
	return s
}

func (d draw) rule() *security.Rule {
	r := &security.Rule{}
	for range d.IntN(3) {
		r.From = append(r.From, &security.Rule_From{Source: d.source()})
	}
	for range d.IntN(3) {
		r.To = append(r.To, &security.Rule_To{Operation: &security.Operation{Ports: some(d, drawPorts...), NotPorts: some(d, drawPorts...)}})
	}
	for range d.IntN(3) {
		key := pick(d, "source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port")
		of := map[string][]string{"source.ip": drawBlocks, "destination.ip": drawBlocks, "source.namespace": drawNamespaces, "source.principal": drawPrincipals, "destination.port": drawPorts}[key]
		r.When = append(r.When, &security.Condition{Key: key, Values: some(d, of...), NotValues: some(d, of...)})
	}
	return r
}

func (d draw) authorizationPolicy(i int) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: d.meta(i)}
	p.Spec.Selector = d.selector()
	p.Spec.Action = pick(d, security.AuthorizationPolicy_ALLOW, security.AuthorizationPolicy_DENY, security.AuthorizationPolicy_DENY)
	if d.IntN(10) == 0 {
		p.Spec.Action = security.AuthorizationPolicy_AUDIT
	}
	if d.IntN(10) == 0 {
		p.Annotations = map[string]string{annotationDryRun: "true"}
	}
	if p.Spec.Selector == nil && d.IntN(10) == 0 {
		p.Spec.TargetRefs = []*apitype.PolicyTargetReference{{Kind: "Service", Name: "x"}}
	}
	for range d.IntN(3) {
		p.Spec.Rules = append(p.Spec.Rules, d.rule())
	}
	return p
}

func (d draw) peerAuthentication(i int) *securityv1.PeerAuthentication {
	mode := func() *security.PeerAuthentication_MutualTLS {
		if d.IntN(5) == 0 {
			return nil
		}
		return &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_Mode(d.IntN(4))}
	}
	p := &securityv1.PeerAuthentication{ObjectMeta: d.meta(i)}
	p.Spec.Selector, p.Spec.Mtls = d.selector(), mode()
	if p.Spec.Selector != nil && d.IntN(2) == 0 {
		p.Spec.PortLevelMtls = map[uint32]*security.PeerAuthentication_MutualTLS{}
		for range 1 + d.IntN(3) {
			p.Spec.PortLevelMtls[pick[uint32](d, 80, 8080, 9000)] = mode()
		}
	}
	return p
}

// sound draws until an object is one that source lets pass.
func sound[T source.Object](t *testing.T, kind string, next func() T) T {
	t.Helper()
	k, ok := source.KindOf(kind)
	if !ok {
		t.Fatal(kind)
	}
	for {
		if o := next(); len(k.Check(o)) == 0 {
			return o
		}
	}
}

func (d draw) connection() authz.Connection {
	c := authz.Connection{
		SrcIP: netip.MustParseAddr(pick(d, "10.0.0.1", "10.0.0.3", "192.168.0.1", "fd00::1")),
		Dst:   netip.AddrPortFrom(netip.MustParseAddr(pick(d, "10.0.0.2", "10.1.0.2", "fd00::2")), pick[uint16](d, 80, 8080, 9000)),
	}
	if d.IntN(3) > 0 {
		c.Source = mesh.Identity{TrustDomain: pick(d, "cluster.local", "td"), Namespace: pick(d, "a", "ab", "b"), ServiceAccount: pick(d, "x", "y")}
	}
	return c
}

// served is what a proxy holds of a snapshot: policies have been over the wire, and into its catalogue.
func served(t *testing.T, s *Snapshot) *catalog.Snapshot {
	t.Helper()
	d := catalog.Delta{Workloads: s.Workloads}
	for _, p := range s.Policies {
		_, value, err := xds.EncodePolicy(p)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := xds.DecodeAuthorization(value)
		if err != nil {
			t.Fatal(err)
		}
		d.Policies = append(d.Policies, decoded)
	}
	store := catalog.New()
	store.Apply(d)
	return store.Load()
}

// P4-01 to P4-03: whatever the objects are, as long as they ask for L4 alone, a proxy decides as the API promises.
func TestConversionAgreesWithModel(t *testing.T) {
	d := draw{rand.New(rand.NewPCG(4, 1))}
	outcomes := map[string]int{}
	for range 5_000 {
		m := model{namespace: pick(d, "a", "ab", modelRoot), labels: map[string]string{"app": pick(d, "x", "y"), "version": pick(d, "v1", "v2")}}
		objs := []source.Object{pod(m.namespace, "w", "n", "10.0.0.2", func(p *corev1.Pod) { p.Labels = m.labels })}
		for i := range d.IntN(4) {
			m.authorization = append(m.authorization, sound(t, "AuthorizationPolicy", func() *securityv1.AuthorizationPolicy { return d.authorizationPolicy(i) }))
			objs = append(objs, m.authorization[i])
		}
		for i := range d.IntN(5) {
			m.peers = append(m.peers, sound(t, "PeerAuthentication", func() *securityv1.PeerAuthentication { return d.peerAuthentication(i) }))
			objs = append(objs, m.peers[i])
		}
		compiled := Compile(objectsOf(objs...), Settings{RootNamespace: modelRoot})
		snapshot := served(t, compiled)
		set := snapshot.PolicySet(snapshot.WorkloadByUID("Kubernetes//Pod/" + m.namespace + "/w"))
		for range 10 {
			c := d.connection()
			got := set.Decide(c)
			outcomes[fmt.Sprint(got.Reason, " plaintext=", c.Source.IsZero())]++
			if want := m.allows(c); got.Allowed != want {
				t.Fatalf("decided %v (%s, %s), the model says %v\nto %s %v from %+v\n%s", got.Allowed, got.Reason, got.Policy(), want, m.namespace, m.labels, c, describe(objs[1:]))
			}
		}
	}
	t.Log(outcomes)
	for _, r := range []authz.Reason{authz.NoAllowPolicies, authz.AllowMatched, authz.DenyMatched, authz.NoRuleMatched} {
		for _, plaintext := range []bool{false, true} {
			if k := fmt.Sprint(r, " plaintext=", plaintext); outcomes[k] < 200 {
				t.Errorf("only %d cases of %q: the generator proves too little", outcomes[k], k)
			}
		}
	}
}

func describe(objs []source.Object) string {
	var b strings.Builder
	for _, o := range objs {
		text, err := yaml.Marshal(o)
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&b, "---\n%s", text)
	}
	return b.String()
}
