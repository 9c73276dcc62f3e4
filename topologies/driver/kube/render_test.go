// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambientlab/ambientlab/topologies"
)

func spec(t *testing.T, name string) *topologies.Spec {
	t.Helper()
	s, err := topologies.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What a cluster brings itself, or package install, is not applied: a topology that replaced the endpoints of the API server
// would cut the cluster off.
func TestSplitLeavesOutWhatIsThere(t *testing.T) {
	for _, name := range topologies.Catalogue() {
		s := spec(t, name)
		if len(s.Clusters) != 1 {
			continue
		}
		p, err := split(s)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, o := range p.objects {
			u, err := document(o)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, u.GetKind()+" "+u.GetNamespace()+"/"+u.GetName())
			if u.GetNamespace() == systemNamespace || u.GetNamespace() == "kube-system" || u.GetNamespace() == "default" {
				t.Errorf("%s: %s is applied", name, names[len(names)-1])
			}
		}
		if !slices.Contains(names, "Namespace /shop") || len(p.nodes) != len(s.Clusters[0].Nodes) || len(p.pods) == 0 {
			t.Errorf("%s: %d nodes, %d pods, objects %q", name, len(p.nodes), len(p.pods), names)
		}
	}
}

func TestPodIsFitted(t *testing.T) {
	s := &stand{image: "mesh:1", nodes: &nodes{real: map[string]string{"node1": "c-worker", "node2": "c-worker2"}, order: []string{"node1", "node2"}}}
	pod := func(node, image string) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Image: image}}}}
	}
	for _, c := range []struct {
		in     *corev1.Pod
		node   string
		image  string
		policy corev1.PullPolicy
	}{
		{pod("node2", "ambientlab/workload"), "c-worker2", "mesh:1", corev1.PullIfNotPresent},
		{pod("", "ambientlab/workload"), "c-worker", "mesh:1", corev1.PullIfNotPresent},
		{pod("other", "busybox"), "other", "busybox", ""},
	} {
		got := s.fit(c.in)
		ctr := got.Spec.Containers[0]
		if got.Spec.NodeName != c.node || ctr.Image != c.image || ctr.ImagePullPolicy != c.policy || *got.Spec.TerminationGracePeriodSeconds != graceSeconds {
			t.Errorf("%+v", got.Spec)
		}
		if c.in.Spec.TerminationGracePeriodSeconds != nil {
			t.Error("the caller's pod was changed")
		}
	}
}

func TestServiceIsFitted(t *testing.T) {
	subnets := func(list ...string) (out []netip.Prefix) {
		for _, text := range list {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	for _, c := range []struct {
		name    string
		subnets []netip.Prefix
		want    []string
		policy  corev1.IPFamilyPolicy
	}{
		{"the same subnets", subnets("10.96.0.0/16", "fd00:10:96::/112"), []string{"10.96.0.17", "fd00:10:96::11"}, corev1.IPFamilyPolicyRequireDualStack},
		{"nobody tells", nil, []string{"10.96.0.17", "fd00:10:96::11"}, corev1.IPFamilyPolicyRequireDualStack},
		{"one family", subnets("10.96.0.0/16"), []string{"10.96.0.17"}, corev1.IPFamilyPolicySingleStack},
		{"other subnets", subnets("172.30.0.0/16"), nil, corev1.IPFamilyPolicyPreferDualStack},
	} {
		t.Run(c.name, func(t *testing.T) {
			dual := corev1.IPFamilyPolicyRequireDualStack
			svc := &corev1.Service{Spec: corev1.ServiceSpec{
				ClusterIP: "10.96.0.17", ClusterIPs: []string{"10.96.0.17", "fd00:10:96::11"}, IPFamilyPolicy: &dual,
			}}
			got := (&stand{serviceSubnets: c.subnets}).fitService(svc)
			if !slices.Equal(got.Spec.ClusterIPs, c.want) || *got.Spec.IPFamilyPolicy != c.policy || got.Spec.ClusterIP != append(c.want, "")[0] {
				t.Errorf("%v %q %s", got.Spec.ClusterIPs, got.Spec.ClusterIP, *got.Spec.IPFamilyPolicy)
			}
		})
	}
}

func TestDocumentHoldsWhatIsSet(t *testing.T) {
	if _, err := document(&corev1.Pod{Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}); err == nil {
		t.Error("a pod without a name was accepted")
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "node1"}}
	p.Namespace, p.Name = "shop", "web"
	u, err := document(p)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"namespace": "shop", "name": "web"},
		"spec": map[string]any{"nodeName": "node1", "containers": nil},
	}
	if diff := cmp.Diff(want, u.Object); diff != "" {
		t.Error(diff)
	}
	(&stand{nodes: &nodes{named: map[string]string{"c-worker": "node1"}}}).speak(u)
	u.SetKind("Node")
	u.SetName("c-worker")
	(&stand{nodes: &nodes{named: map[string]string{"c-worker": "node1"}}}).speak(u)
	if node, _, _ := unstructured.NestedString(u.Object, "spec", "nodeName"); node != "node1" || u.GetName() != "node1" {
		t.Errorf("node %q, name %q", node, u.GetName())
	}
}

func TestChangeOfMetadata(t *testing.T) {
	got := change([]string{"app", "old"}, map[string]string{"app": "web", "new": "1"})
	if diff := cmp.Diff(map[string]any{"app": "web", "old": nil, "new": "1"}, got); diff != "" {
		t.Error(diff)
	}
}
