// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// packet opens a connection. An address that is no pod's is outside the cluster.
type packet struct {
	from, to netip.Addr
	protocol corev1.Protocol
	port     uint16
}

// model judges as the API's documentation says, slowly and without any table.
type model struct{ Config }

func (m model) pod(a netip.Addr) *Pod {
	for i := range m.Pods {
		if slices.Contains(m.Pods[i].IPs, a) {
			return &m.Pods[i]
		}
	}
	return nil
}

func (m model) allows(p packet) bool {
	return m.side(networkingv1.PolicyTypeEgress, p, p.from, p.to) && m.side(networkingv1.PolicyTypeIngress, p, p.to, p.from)
}

func (m model) side(t networkingv1.PolicyType, p packet, own, peer netip.Addr) bool {
	pod := m.pod(own)
	if pod == nil || m.pod(peer) == pod {
		return true
	}
	isolated := false
	for _, np := range m.Policies {
		types := np.Spec.PolicyTypes
		if len(types) == 0 && (t == networkingv1.PolicyTypeIngress || len(np.Spec.Egress) > 0) {
			types = []networkingv1.PolicyType{t}
		}
		if np.Namespace != pod.Namespace || !slices.Contains(types, t) || !match(&np.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if t == networkingv1.PolicyTypeIngress {
			for _, r := range np.Spec.Ingress {
				if m.peers(np, r.From, peer) && m.ports(r.Ports, p) {
					return true
				}
			}
			continue
		}
		for _, r := range np.Spec.Egress {
			if m.peers(np, r.To, peer) && m.ports(r.Ports, p) {
				return true
			}
		}
	}
	return !isolated
}

func match(s *metav1.LabelSelector, l map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(labels.Set(l))
}

func (m model) peers(np *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer, a netip.Addr) bool {
	pod := m.pod(a)
	for _, x := range peers {
		if x.IPBlock != nil {
			in := func(s string) bool { return netip.MustParsePrefix(s).Contains(a) }
			if in(x.IPBlock.CIDR) && !slices.ContainsFunc(x.IPBlock.Except, in) {
				return true
			}
			continue
		}
		if pod == nil {
			continue
		}
		space := pod.Namespace == np.Namespace
		if x.NamespaceSelector != nil {
			space = match(x.NamespaceSelector, m.Namespaces[pod.Namespace])
		}
		if space && (x.PodSelector == nil || match(x.PodSelector, pod.Labels)) {
			return true
		}
	}
	return len(peers) == 0
}

func (m model) ports(ports []networkingv1.NetworkPolicyPort, p packet) bool {
	for _, x := range ports {
		protocol := corev1.ProtocolTCP
		if x.Protocol != nil {
			protocol = *x.Protocol
		}
		if protocol != p.protocol {
			continue
		}
		switch {
		case x.Port == nil:
			return true
		case x.Port.Type == intstr.String:
			if pod := m.pod(p.to); pod != nil && slices.Contains(pod.Ports, Port{x.Port.StrVal, protocol, p.port}) {
				return true
			}
		case x.EndPort != nil:
			if int32(p.port) >= x.Port.IntVal && int32(p.port) <= *x.EndPort {
				return true
			}
		case int32(p.port) == x.Port.IntVal:
			return true
		}
	}
	return len(ports) == 0
}

// passes walks a plan's rules as the kernel does, for the first packet of a connection.
func (c content) passes(p packet) bool {
	for _, base := range c.chains {
		if base.priority != 0 && !c.walk(base, p) {
			return false
		}
	}
	return true
}

func (c content) walk(from chain, p packet) bool {
	for _, r := range from.rules {
		if r.established || !c.matches(r, p) {
			continue
		}
		switch r.verb {
		case accept:
			return true
		case drop:
			return false
		case goTo:
			i := slices.IndexFunc(c.chains, func(x chain) bool { return x.name == r.target })
			return c.walk(c.chains[i], p)
		}
	}
	return true
}

func (c content) matches(r rule, p packet) bool {
	a := []netip.Addr{p.from, p.to}[r.end]
	if r.addr.IsValid() && r.addr != a {
		return false
	}
	if r.set != "" {
		i := slices.IndexFunc(c.sets, func(s set) bool { return s.name == r.set })
		if !slices.ContainsFunc(c.sets[i].spans, func(s span) bool { return !a.Less(s.from) && !s.to.Less(a) }) {
			return false
		}
	}
	return (r.protocol == "" || r.protocol == p.protocol) && (r.from == 0 || (p.port >= r.from && p.port <= r.to))
}

var (
	nodes     = []string{"node1", "node2"}
	spaces    = []string{"shop", "plain", "other"}
	protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	portNames = []string{"http", "dns"}
	blocks    = []string{"10.244.0.0/16", "10.244.0.0/24", "0.0.0.0/0", "192.0.2.0/24", "fd00:10:244::/48", "::/0", "10.244.1.3/32", "128.0.0.0/1"}
	holes     = map[string][]string{"10.244.0.0/16": {"10.244.0.4/30", "10.244.1.0/24"}, "0.0.0.0/0": {"10.0.0.0/8", "192.0.2.128/25"}, "::/0": {"fd00:10:244:1::/64"}}
	outsiders = []string{"192.0.2.1", "192.0.2.200", "203.0.113.9", "2001:db8::1", "255.255.255.255"}
)

type dice struct{ *rand.Rand }

func pick[T any](d dice, list []T) T { return list[d.IntN(len(list))] }

func (d dice) labels() map[string]string {
	return map[string]string{"app": pick(d, []string{"web", "cart", "stock"}), "tier": pick(d, []string{"a", "b"})}
}

func (d dice) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch d.IntN(4) {
	case 0:
	case 1:
		s.MatchLabels = map[string]string{"app": pick(d, []string{"web", "cart", "nobody"})}
	case 2:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"a"}}}
	default:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"web", "stock"}}}
	}
	return s
}

func (d dice) peers() (out []networkingv1.NetworkPolicyPeer) {
	for range d.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch d.IntN(4) {
		case 0:
			p.PodSelector = d.selector()
		case 1:
			p.NamespaceSelector = d.selector()
		case 2:
			p.NamespaceSelector, p.PodSelector = d.selector(), d.selector()
		default:
			b := pick(d, blocks)
			p.IPBlock = &networkingv1.IPBlock{CIDR: b, Except: holes[b][:d.IntN(len(holes[b])+1)]}
		}
		out = append(out, p)
	}
	return out
}

func (d dice) ports() (out []networkingv1.NetworkPolicyPort) {
	for range d.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if proto := pick(d, protocols); d.IntN(3) > 0 {
			p.Protocol = &proto
		}
		number := intstr.FromInt32(80 + d.Int32N(4))
		switch d.IntN(4) {
		case 0:
		case 1:
			name := intstr.FromString(pick(d, portNames))
			p.Port = &name
		case 2:
			end := number.IntVal + d.Int32N(3)
			p.Port, p.EndPort = &number, &end
		default:
			p.Port = &number
		}
		out = append(out, p)
	}
	return out
}

func (d dice) policy(i int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(d, spaces), Name: fmt.Sprint("p", i)}}
	np.Spec.PodSelector = *d.selector()
	for range d.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(), Ports: d.ports()})
	}
	for range d.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(), Ports: d.ports()})
	}
	np.Spec.PolicyTypes = pick(d, [][]networkingv1.PolicyType{
		nil, {networkingv1.PolicyTypeIngress}, {networkingv1.PolicyTypeEgress}, {networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
	})
	return np
}

func (d dice) config() Config {
	c := Config{Namespaces: map[string]map[string]string{}}
	for _, s := range spaces {
		c.Namespaces[s] = d.labels()
	}
	for i := range 8 {
		n := i % len(nodes)
		p := Pod{Namespace: pick(d, spaces), Name: fmt.Sprint("pod", i), Node: nodes[n], Labels: d.labels()}
		p.IPs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.244.%d.%d", n, 2+i)), netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%d::%d", n, 2+i))}
		for _, name := range portNames {
			if d.IntN(2) == 0 {
				p.Ports = append(p.Ports, Port{name, pick(d, protocols), uint16(80 + d.IntN(4))})
			}
		}
		c.Pods = append(c.Pods, p)
	}
	for i := range d.IntN(5) {
		c.Policies = append(c.Policies, d.policy(i))
	}
	return c
}

// Every packet is judged as the model says: as leaving on its sender's node, as entering on its receiver's.
func TestPlansJudgeAsTheModel(t *testing.T) {
	refused := 0
	for seed := range uint64(150) {
		d := dice{rand.New(rand.NewPCG(seed, 7))}
		c := d.config()
		plans := map[string]Plan{}
		for _, n := range nodes {
			c.Node = n
			p := NewPlan(c)
			if len(p.Problems) > 0 {
				t.Fatalf("seed %d: %v", seed, p.Problems)
			}
			plans[n] = p
		}
		m := model{c}
		var addrs []netip.Addr
		for _, p := range c.Pods {
			addrs = append(addrs, p.IPs...)
		}
		for _, o := range outsiders {
			addrs = append(addrs, netip.MustParseAddr(o))
		}
		for range 300 {
			p := packet{pick(d, addrs), pick(d, addrs), pick(d, protocols), uint16(79 + d.IntN(7))}
			if p.from.Is4() != p.to.Is4() {
				continue
			}
			got := true
			for _, plan := range plans { // a node that a packet does not pass judges neither of its ends
				got = got && plan.passes(p)
			}
			if want := m.allows(p); got != want {
				t.Fatalf("seed %d: %+v passes: %v, want %v", seed, p, got, want)
			}
			if !got {
				refused++
			}
		}
	}
	if refused < 1000 {
		t.Errorf("only %d packets were refused: the dice are bad", refused)
	}
}
