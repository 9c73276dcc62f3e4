// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
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
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// aSite is a lab of the smallest topology, of which nothing runs.
func aSite(t *testing.T) *site {
	t.Helper()
	spec, err := topologies.Open("two-pods")
	if err != nil {
		t.Fatal(err)
	}
	return &site{
		dir: "/labs/two", bin: "/opt/bin", spec: spec, cluster: &spec.Clusters[0], objects: &source.Objects{},
		pods: map[lab.PodRef]*pod{}, nodes: map[string]*node{}, externals: map[string]*external{}, control: newController(),
		daemonEnv: map[string][]string{lab.DaemonZtunnel: {"SECRET_TTL=10s"}},
	}
}

func aNode(s *site) *node {
	return &node{name: "node1", subnets: s.cluster.NodePodSubnets(0)}
}

func aPod(s *site, namespace, name string, c corev1.Container) *pod {
	obj := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{ServiceAccountName: name, Containers: []corev1.Container{c}},
	}
	return &pod{
		ref: lab.PodRef{Namespace: namespace, Name: name}, uid: "u-" + name, role: roleOf(obj), node: aNode(s), obj: obj,
		ips: []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00:10:244::2")},
	}
}

func TestNetworkConfig(t *testing.T) {
	s := aSite(t)
	conf, err := s.networkConfig(aNode(s))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "conflist.json", string(conf)+"\n")
}

// What runs in the pods of the mesh itself, and in an application's.
func TestCommands(t *testing.T) {
	s := aSite(t)
	fieldRef := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	var b strings.Builder
	for _, p := range []*pod{
		aPod(s, "istio-system", "istiod", corev1.Container{Image: "ambientlab/istiod"}),
		aPod(s, "istio-system", "ztunnel-node1", corev1.Container{Image: "ambientlab/ztunnel"}),
		aPod(s, "shop", "web", corev1.Container{
			Command: []string{"workload", "serve"}, Args: []string{"--http", "8080"},
			Env: []corev1.EnvVar{{Name: "POD_IP", ValueFrom: fieldRef("status.podIP")}, {Name: "IPS", ValueFrom: fieldRef("status.podIPs")}, {Name: "COLOUR", Value: "red"}},
		}),
	} {
		argv, env := s.command(p)
		fmt.Fprintf(&b, "%s: %s\n", p.ref, strings.Join(argv, " "))
		for _, e := range env {
			fmt.Fprintf(&b, "  %s\n", e)
		}
		for _, m := range s.roleBinds(p) {
			fmt.Fprintf(&b, "  bind %s at %s, read-only %t\n", m.Source, m.Target, m.ReadOnly)
		}
	}
	fmt.Fprintf(&b, "agent: %s\n", strings.Join(s.agentCommand(aNode(s)), " "))
	golden(t, "commands.txt", b.String())
}

func TestBoundsByRole(t *testing.T) {
	withCaps := func(add, drop []corev1.Capability) *corev1.Container {
		return &corev1.Container{SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: add, Drop: drop}}}
	}
	for _, c := range []struct {
		name      string
		container *corev1.Container
		role      role
		want      uint64
	}{
		{"application", &corev1.Container{}, roleApp, 0xa80425fb},
		{"with NET_ADMIN, without NET_RAW", withCaps([]corev1.Capability{"NET_ADMIN"}, []corev1.Capability{"NET_RAW"}), roleApp, 0xa80415fb},
		{"ztunnel", withCaps([]corev1.Capability{"NET_ADMIN", "SYS_ADMIN", "NET_RAW"}, nil), roleZtunnel, 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_RAW},
		{"control plane", &corev1.Container{}, roleControl, 0},
	} {
		b, err := containerBounds(c.container, c.role)
		if err != nil || b.Capabilities != c.want || !b.NoNewPrivs {
			t.Errorf("%s: %#x, %v; want %#x", c.name, b.Capabilities, err, c.want)
		}
	}
	if _, err := containerBounds(withCaps([]corev1.Capability{"NET_ADMNI"}, nil), roleApp); err == nil || !strings.Contains(err.Error(), "NET_ADMNI") {
		t.Errorf("an unknown capability: %v", err)
	}
}

func TestVolumes(t *testing.T) {
	s := aSite(t)
	p := aPod(s, "shop", "mallory", corev1.Container{VolumeMounts: []corev1.VolumeMount{
		{Name: "root", MountPath: "/var/run/secrets/istio"}, {Name: "token", MountPath: "/tokens"}, {Name: "other", MountPath: "/other"},
	}})
	p.object().Spec.Volumes = []corev1.Volume{
		{Name: "root", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: rootConfigMap}}}},
		{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: istioAudience, Path: "istio"}},
		}}}},
		{Name: "other", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
	}
	want := []pause.Bind{{Source: s.dir.RootCert(), Target: "/var/run/secrets/istio", ReadOnly: true}}
	if diff := cmp.Diff(want, s.roleBinds(p)); diff != "" {
		t.Errorf("binds (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]projectedToken{{"/tokens/istio", istioAudience}}, projectedTokens(p.object()), cmp.AllowUnexported(projectedToken{})); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
}

func TestPodFiles(t *testing.T) {
	s := aSite(t)
	golden(t, "resolv.conf", s.resolvConf("shop"))
	golden(t, "hosts", s.hostsFile("web", []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00:10:244::2")}).Content)
}

func TestDecodeObjectsReportsAllThatIsWrong(t *testing.T) {
	objs, err := decodeObjects(order.Objects{
		json.RawMessage(`{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"shop","name":"web"}}`),
		json.RawMessage(`{"apiVersion":"v1","kind":"Gizmo","metadata":{"namespace":"shop","name":"g"}}`),
		json.RawMessage(`{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"shop","name":"s"},"spec":{"ports":[{"port":0}]}}`),
	})
	if len(objs) != 1 || err == nil {
		t.Fatalf("%d objects, %v; want one and an error", len(objs), err)
	}
	for _, want := range []string{"object 2", "Gizmo", "object 3", "shop/s", "spec.ports[0].port"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

func TestStatus(t *testing.T) {
	s := aSite(t)
	p := aPod(s, "shop", "web", corev1.Container{})
	p.ready = true
	o := p.statusOf()
	if o.Status.Phase != corev1.PodRunning || o.Status.PodIP != "10.244.0.2" || len(o.Status.PodIPs) != 2 || o.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("%+v", o.Status)
	}
	if o.Spec.NodeName != "" || len(o.Labels) > 0 {
		t.Error("a status says more than what kubelet knows")
	}
	p.ips = nil
	if p.statusOf().Status.Phase != corev1.PodPending {
		t.Error("a pod without a network is pending")
	}
}

func TestReasonsNameTheCure(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{unix.EOPNOTSUPP, "modprobe"},
		{unix.ENOSPC, "user.max_net_namespaces"},
	} {
		if got := refused("try", fmt.Errorf("wrapped: %w", c.err)); !errors.Is(got, c.err) || !strings.Contains(got.Error(), c.want) {
			t.Errorf("%v does not mention %s", got, c.want)
		}
	}
}

func TestUIDsAreUUIDs(t *testing.T) {
	a, b := newUID(), newUID()
	if a == b || len(a) != 36 || a[14] != '4' || !slices.Contains([]byte("89ab"), a[19]) {
		t.Errorf("%s, %s", a, b)
	}
}

func TestFileNames(t *testing.T) {
	for want, key := range map[string]source.Key{
		"pod.shop.web.yaml": {Kind: "Pod", Namespace: "shop", Name: "web"},
		"node.node1.yaml":   {Kind: "Node", Name: "node1"},
	} {
		if got := fileName(key); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
