// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// Check names every mistake of a policy, with the policy's name and the field; nil if there is none.
func Check(np *networkingv1.NetworkPolicy) []error {
	const name = "NetworkPolicy"
	kind, ok := source.KindOf(name)
	if !ok {
		return []error{fmt.Errorf("the kind %s is not known", name)} // a programmer's error that a test finds
	}
	var errs []error
	for _, bad := range kind.Check(np) {
		key := source.Key{Kind: name, Namespace: np.Namespace, Name: np.Name}
		errs = append(errs, source.Problem{Key: key, Field: bad.Field, Err: bad.Err})
	}
	return errs
}

// policy is a policy that was found sound.
type policy struct {
	*networkingv1.NetworkPolicy
	subject labels.Selector
	types   []networkingv1.PolicyType
	rules   map[networkingv1.PolicyType][]policyRule
}

// policyRule is a rule of either direction.
type policyRule struct {
	peers []peer
	ports []networkingv1.NetworkPolicyPort
}

// peer is a block of addresses, or pods by their own labels and those of their namespace.
type peer struct {
	block      []span
	namespaces labels.Selector // nil: the policy's own
	pods       labels.Selector // nil: all
}

func (p *policy) name() string { return p.Namespace + "/" + p.Name }

func compile(np *networkingv1.NetworkPolicy) (*policy, error) {
	p := &policy{NetworkPolicy: np, types: np.Spec.PolicyTypes, rules: map[networkingv1.PolicyType][]policyRule{}}
	if len(p.types) == 0 { // as an API server fills in
		p.types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(np.Spec.Egress) > 0 {
			p.types = append(p.types, networkingv1.PolicyTypeEgress)
		}
	}
	var err error
	if p.subject, err = metav1.LabelSelectorAsSelector(&np.Spec.PodSelector); err != nil {
		return nil, err
	}
	add := func(t networkingv1.PolicyType, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
		r := policyRule{ports: ports}
		for i := range peers {
			one, bad := compilePeer(&peers[i])
			if bad != nil && err == nil {
				err = bad
			}
			r.peers = append(r.peers, one)
		}
		p.rules[t] = append(p.rules[t], r)
	}
	for _, r := range np.Spec.Ingress {
		add(networkingv1.PolicyTypeIngress, r.From, r.Ports)
	}
	for _, r := range np.Spec.Egress {
		add(networkingv1.PolicyTypeEgress, r.To, r.Ports)
	}
	return p, err
}

func compilePeer(p *networkingv1.NetworkPolicyPeer) (out peer, err error) {
	if p.IPBlock != nil {
		out.block, err = compileBlock(p.IPBlock)
		return out, err
	}
	if p.NamespaceSelector != nil {
		if out.namespaces, err = metav1.LabelSelectorAsSelector(p.NamespaceSelector); err != nil {
			return out, err
		}
	}
	if p.PodSelector != nil {
		out.pods, err = metav1.LabelSelectorAsSelector(p.PodSelector)
	}
	return out, err
}

func compileBlock(b *networkingv1.IPBlock) ([]span, error) {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return nil, err
	}
	var holes []span
	for _, e := range b.Except {
		except, err := netip.ParsePrefix(e)
		if err != nil {
			return nil, err
		}
		holes = append(holes, spanOf(except))
	}
	return without([]span{spanOf(cidr)}, holes), nil
}

// selects reports whether the policy is about the pod, in one direction.
func (p *policy) selects(t networkingv1.PolicyType, pod *Pod) bool {
	return pod.Namespace == p.Namespace && slices.Contains(p.types, t) && p.subject.Matches(labels.Set(pod.Labels))
}

// matches reports whether a pod of the cluster is one that selectors mean; a block of addresses means no pods.
func (x peer) matches(p *policy, pod *Pod, namespaces map[string]map[string]string) bool {
	if x.block != nil || (x.namespaces == nil && x.pods == nil) {
		return false
	}
	if x.namespaces == nil && pod.Namespace != p.Namespace {
		return false
	}
	if x.namespaces != nil && !x.namespaces.Matches(labels.Set(namespaces[pod.Namespace])) {
		return false
	}
	return x.pods == nil || x.pods.Matches(labels.Set(pod.Labels))
}
