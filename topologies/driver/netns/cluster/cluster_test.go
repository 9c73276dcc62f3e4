// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// threeNodes are the objects of the catalogue's topology, its pods with addresses and ready, with their slices.
func threeNodes(t *testing.T) *source.Objects {
	t.Helper()
	spec, err := topologies.Open("three-nodes")
	if err != nil {
		t.Fatal(err)
	}
	objs, err := spec.Objects("Kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	changes := map[source.Key]source.Object{}
	for i, o := range objs {
		so := o.(source.Object)
		if p, ok := o.(*corev1.Pod); ok {
			setStatus(p, true, fmt.Sprintf("10.244.0.%d", i), fmt.Sprintf("fd00:10:244::%x", i))
		}
		kind, ok := source.KindOf(o.GetObjectKind().GroupVersionKind().Kind)
		if !ok {
			t.Fatalf("no source reads a %s", o.GetObjectKind().GroupVersionKind())
		}
		for _, bad := range kind.Check(so) {
			t.Errorf("%s %s/%s: %v", kind.Name, so.GetNamespace(), so.GetName(), bad)
		}
		changes[source.Key{Kind: o.GetObjectKind().GroupVersionKind().Kind, Namespace: so.GetNamespace(), Name: so.GetName()}] = so
	}
	return withSlices((*source.Objects)(nil).With(changes))
}

func withSlices(o *source.Objects) *source.Objects {
	changes := map[source.Key]source.Object{}
	for _, s := range Slices(o) {
		changes[source.Key{Kind: "EndpointSlice", Namespace: s.Namespace, Name: s.Name}] = s
	}
	return o.With(changes)
}

func setStatus(p *corev1.Pod, ready bool, ips ...string) {
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ips[0]}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
}

func TestSlicesOfThreeNodes(t *testing.T) {
	o := threeNodes(t)
	var b strings.Builder
	for _, s := range Slices(o) {
		if s.Labels[discoveryv1.LabelServiceName] != "cart" && s.Labels[discoveryv1.LabelServiceName] != "cart-headless" {
			continue
		}
		data, err := yaml.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("---\n" + string(data))
	}
	golden(t, "testdata/cart-slices.golden.yaml", b.String())
	if diff := cmp.Diff(Slices(o), Slices(o)); diff != "" {
		t.Errorf("a second computation differs:\n%s", diff)
	}
	if s := o.EndpointSlices["default/kubernetes-ipv4"]; s == nil || Managed(s) {
		t.Errorf("the topology's own slice: %v", s)
	}
}

func TestServicesOfThreeNodes(t *testing.T) {
	o := threeNodes(t)
	services := Services(o)
	if p, err := nodenet.NewPlan(nodenet.Config{Self: nodenet.Host{Name: "node1"}, Services: services}); err != nil || len(p.Problems) > 0 {
		t.Errorf("nodenet refuses them: %v, %v", err, p.Problems)
	}
	var b strings.Builder
	for _, s := range services {
		if s.Name == "shop/cart" || s.Name == "default/kubernetes" || s.Name == "istio-system/istiod" {
			fmt.Fprintln(&b, s.Name, s.VIPs)
			for _, p := range s.Ports {
				fmt.Fprintln(&b, " ", p.Port, p.Protocol, p.Endpoints)
			}
		}
	}
	golden(t, "testdata/services.golden.txt", b.String())
}

func newPod(name, hostname, subdomain string, labels map[string]string, ready bool, ips ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: labels},
		Spec: corev1.PodSpec{Hostname: hostname, Subdomain: subdomain, Containers: []corev1.Container{
			{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}},
		}},
	}
	setStatus(p, ready, ips...)
	return p
}

func objects(pods []*corev1.Pod, services ...*corev1.Service) *source.Objects {
	o := &source.Objects{Pods: map[string]*corev1.Pod{}, Services: map[string]*corev1.Service{}}
	for _, p := range pods {
		o.Pods[p.Namespace+"/"+p.Name] = p
	}
	for _, s := range services {
		s.Namespace = "ns"
		o.Services["ns/"+s.Name] = s
	}
	return withSlices(o)
}

func TestSliceRules(t *testing.T) {
	app := map[string]string{"app": "a"}
	gone := newPod("gone", "", "", app, true, "10.0.0.4")
	gone.DeletionTimestamp = &metav1.Time{}
	ended := newPod("ended", "", "", app, true, "10.0.0.5")
	ended.Status.Phase = corev1.PodSucceeded
	pods := []*corev1.Pod{
		newPod("p1", "host1", "svc", app, true, "10.0.0.1"), newPod("p2", "", "", app, false, "10.0.0.2"),
		newPod("other", "", "", map[string]string{"app": "b"}, true, "10.0.0.3"), gone, ended,
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "svc"}, Spec: corev1.ServiceSpec{
		Selector: app, ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}},
	}}
	ready := func(s *discoveryv1.EndpointSlice) (out []string) {
		for _, e := range s.Endpoints {
			out = append(out, fmt.Sprintf("%s ready=%t", e.TargetRef.Name, *e.Conditions.Ready))
		}
		return out
	}
	got := Slices(objects(pods, svc))
	if len(got) != 1 || *got[0].Ports[0].Port != 8080 || *got[0].Endpoints[1].Hostname != "host1" {
		t.Fatalf("slices: %+v", got)
	}
	if diff := cmp.Diff([]string{"gone ready=false", "p1 ready=true", "p2 ready=false"}, ready(got[0])); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	svc.Spec.PublishNotReadyAddresses = true
	if diff := cmp.Diff([]string{"gone ready=true", "p1 ready=true", "p2 ready=true"}, ready(Slices(objects(pods, svc))[0])); diff != "" {
		t.Errorf("endpoints, not ready ones published (-want +got):\n%s", diff)
	}
	svc.Spec.Selector = nil
	if got := Slices(objects(pods, svc)); len(got) != 0 {
		t.Errorf("a service without selector got slices: %v", got)
	}
}

func TestAssignClusterIPs(t *testing.T) {
	subnets := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
	o := objects(nil, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "old"}, Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.16", ClusterIPs: []string{"10.96.0.16", "fd00:10:96::10"},
	}})
	assign := func(name string, spec corev1.ServiceSpec) []string {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: spec}
		if err := AssignClusterIPs(o, subnets, s); err != nil {
			t.Fatal(err)
		}
		return append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...)
	}
	for name, tt := range map[string]struct {
		spec corev1.ServiceSpec
		want []string
	}{
		"new":      {corev1.ServiceSpec{}, []string{"10.96.0.17", "10.96.0.17", "fd00:10:96::11"}},
		"old":      {corev1.ServiceSpec{}, []string{"10.96.0.16", "10.96.0.16", "fd00:10:96::10"}},
		"headless": {corev1.ServiceSpec{ClusterIP: "None"}, []string{"None"}},
		"six":      {corev1.ServiceSpec{IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol}}, []string{"fd00:10:96::11", "fd00:10:96::11"}},
		"external": {corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "x"}, []string{""}},
	} {
		if diff := cmp.Diff(tt.want, assign(name, tt.spec)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
