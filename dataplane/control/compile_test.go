// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/dataplane/xds"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestCompileGolden(t *testing.T) {
	for _, name := range []string{"shop", "policies"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("testdata", name)
			objects, problems, err := file.Read(dir)
			if err != nil || len(problems) > 0 {
				t.Fatal(err, problems)
			}
			got := document(t, newView(Compile(objects, Settings{}), nil))
			golden := dir + ".golden.json"
			if *update {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("differs from %s (-update rewrites it):\n%s", golden, diff)
			}
			// The order of maps must not show.
			for range 10 {
				if again := document(t, newView(Compile(objects, Settings{}), nil)); !bytes.Equal(got, again) {
					t.Fatal(cmp.Diff(string(got), string(again)))
				}
			}
		})
	}
}

// document prints what is served, as read back from the wire, without what is zero.
func document(t *testing.T, v *view) []byte {
	t.Helper()
	type entry struct {
		Name, Version string
		Workload      *mesh.Workload
		Service       *mesh.Service
	}
	type policy struct {
		Version string
		Policy  *mesh.Policy
	}
	var out struct {
		Addresses  []entry
		Policies   []policy
		Conditions []Condition
		Problems   []string
	}
	table := v.table(xds.TypeAddress)
	for _, n := range table.names {
		r := table.byName[n]
		w, s, err := xds.DecodeAddress(r.value)
		if err != nil {
			t.Fatal(err)
		}
		out.Addresses = append(out.Addresses, entry{r.name, r.version, w, s})
	}
	table = v.table(xds.TypeAuthorization)
	for _, n := range table.names {
		p, err := xds.DecodeAuthorization(table.byName[n].value)
		if err != nil {
			t.Fatal(err)
		}
		out.Policies = append(out.Policies, policy{table.byName[n].version, p})
	}
	out.Conditions = v.snapshot.Conditions
	out.Problems = append(texts(v.snapshot.Problems), texts(v.problems)...)
	data, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	data, err = json.MarshalIndent(prune(tree), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e = prune(e); e == nil {
				delete(v, k)
			} else {
				v[k] = e
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
		if len(v) == 0 {
			return nil
		}
	case string:
		if v == "" {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	}
	return v
}

// objectsOf makes a snapshot of objects.
func objectsOf(objs ...source.Object) *source.Objects {
	changes := map[source.Key]source.Object{}
	for _, o := range objs {
		kind := ""
		switch o.(type) {
		case *corev1.Pod:
			kind = "Pod"
		case *corev1.Service:
			kind = "Service"
		case *corev1.Node:
			kind = "Node"
		case *corev1.Namespace:
			kind = "Namespace"
		case *securityv1.AuthorizationPolicy:
			kind = "AuthorizationPolicy"
		case *securityv1.PeerAuthentication:
			kind = "PeerAuthentication"
		default:
			panic(fmt.Sprintf("%T", o))
		}
		changes[source.Key{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}] = o
	}
	return (*source.Objects)(nil).With(changes)
}

// pod makes a running, ready pod; edit may be nil.
func pod(namespace, name, node, ip string, edit func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: name,
			Containers: []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	if edit != nil {
		edit(p)
	}
	return p
}

func service(namespace, name, vip string, selector map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{
			Selector: selector, ClusterIPs: []string{vip},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}},
		},
	}
}

func TestOwner(t *testing.T) {
	controller := true
	owned := func(kind, name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: name, Controller: &controller}}
			p.Labels["pod-template-hash"] = "5f6c"
		}
	}
	for _, tc := range []struct {
		name string
		edit func(*corev1.Pod)
		want string
		kind mesh.WorkloadType
	}{
		{"bare", nil, "p", mesh.Pod},
		{"deployment", owned("ReplicaSet", "cart-5f6c"), "cart", mesh.Deployment},
		{"bare replica set", owned("ReplicaSet", "cart"), "cart", mesh.Pod},
		{"stateful set", owned("StatefulSet", "db"), "db", mesh.Pod},
		{"job", owned("Job", "import"), "import", mesh.Job},
		{"cron job", owned("Job", "import-28900001"), "import", mesh.CronJob},
		{"not the controller", func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "Job", Name: "x"}}
		}, "p", mesh.Pod},
		{"named by label", func(p *corev1.Pod) { p.Labels["service.istio.io/workload-name"] = "w" }, "w", mesh.Pod},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name, kind := owner(pod("ns", "p", "n", "10.0.0.1", tc.edit))
			if name != tc.want || kind != tc.kind {
				t.Errorf("%s %v, want %s %v", name, kind, tc.want, tc.kind)
			}
		})
	}
}

func TestPodHealth(t *testing.T) {
	now := metav1.Now()
	for name, tc := range map[string]struct {
		edit func(*corev1.Pod)
		want mesh.Health
	}{
		"ready":       {nil, mesh.Healthy},
		"not ready":   {func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }, mesh.Unhealthy},
		"no word":     {func(p *corev1.Pod) { p.Status.Conditions = nil }, mesh.Unhealthy},
		"terminating": {func(p *corev1.Pod) { p.DeletionTimestamp = &now }, mesh.Unhealthy},
	} {
		if got := podHealth(pod("ns", "p", "n", "10.0.0.1", tc.edit)); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestSelectors(t *testing.T) {
	bindings := []*binding{}
	for _, s := range []struct {
		ns, name string
		selector map[string]string
	}{
		{"a", "one", map[string]string{"app": "x"}},
		{"a", "two", map[string]string{"app": "x", "version": "v1"}},
		{"a", "empty-value", map[string]string{"app": ""}},
		{"a", "none", nil},
		{"b", "other", map[string]string{"app": "x"}},
	} {
		bindings = append(bindings, &binding{service: &mesh.Service{Namespace: s.ns, Name: s.name}, key: s.name, selector: s.selector})
	}
	sel := newSelectors(bindings)
	for _, tc := range []struct {
		ns     string
		labels map[string]string
		want   map[string]bool
	}{
		{"a", map[string]string{"app": "x"}, map[string]bool{"one": true}},
		{"a", map[string]string{"app": "x", "version": "v1"}, map[string]bool{"one": true, "two": true}},
		{"a", map[string]string{"version": "v1"}, map[string]bool{}},
		{"a", nil, map[string]bool{}},
		{"a", map[string]string{"app": ""}, map[string]bool{"empty-value": true}},
		{"b", map[string]string{"app": "x", "version": "v1"}, map[string]bool{"other": true}},
	} {
		got := map[string]bool{}
		for _, b := range sel.of(tc.ns, tc.labels) {
			got[b.key] = true
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s %v: %s", tc.ns, tc.labels, diff)
		}
	}
}

func TestTrustDomainAndNetwork(t *testing.T) {
	s := Compile(objectsOf(pod("ns", "p", "n", "10.0.0.1", nil)), Settings{TrustDomain: "corp", Network: "east", ClusterID: "c1"})
	w := s.Workloads[0]
	if w.TrustDomain != "corp" || w.Network != "east" || w.UID != "c1//Pod/ns/p" || w.ClusterID != "c1" {
		t.Errorf("%+v", w)
	}
	if id := Compile(objectsOf(pod("ns", "p", "n", "10.0.0.1", nil)), Settings{TrustDomain: "cluster.local"}).Workloads[0]; id.TrustDomain != "" {
		t.Errorf("trust domain %q, want the wire's default", id.TrustDomain)
	}
}

// A pod is in the network that it names, else in its node's, else in the cluster's; a service's address is one in each.
func TestNetworksOfNodes(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", Labels: map[string]string{mesh.LabelNetwork: "net-b"}}}
	objects := objectsOf(node,
		pod("shop", "a", "n1", "10.0.0.1", nil), pod("shop", "b", "n2", "10.0.0.2", nil),
		pod("shop", "c", "n2", "10.0.0.3", func(p *corev1.Pod) { p.Labels = map[string]string{mesh.LabelNetwork: "net-c"} }),
		service("shop", "a", "10.1.0.1", map[string]string{"app": "a"}))
	snap := Compile(objects, Settings{Network: "net-a"})
	var got []string
	for _, w := range snap.Workloads {
		got = append(got, w.Network)
	}
	for _, a := range snap.Services[0].VIPs {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"net-a", "net-b", "net-c", "net-a/10.1.0.1", "net-b/10.1.0.1"}, got); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
}

func cluster(pods, services int) *source.Objects {
	var objs []source.Object
	for i := range 100 {
		objs = append(objs, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node%d", i)}})
	}
	for i := range services {
		name := fmt.Sprintf("svc-%d", i)
		objs = append(objs, service(fmt.Sprintf("ns-%d", i%20), name, fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), map[string]string{"app": name, "team": "shop"}))
	}
	for i := range pods {
		svc := i % max(services, 1)
		objs = append(objs, pod(fmt.Sprintf("ns-%d", svc%20), fmt.Sprintf("pod-%d", i), fmt.Sprintf("node%d", i%100), fmt.Sprintf("10.%d.%d.%d", 1+i/60000, i/250%240, i%250+1), func(p *corev1.Pod) {
			p.Labels = map[string]string{"app": fmt.Sprintf("svc-%d", svc), "team": "shop", "version": "v1"}
		}))
	}
	return objectsOf(objs...)
}

func BenchmarkCompile(b *testing.B) {
	for _, size := range []struct{ pods, services int }{{100, 10}, {10_000, 1_000}} {
		o := cluster(size.pods, size.services)
		name := fmt.Sprintf("pods=%d/services=%d", size.pods, size.services)
		b.Run("compile/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Compile(o, Settings{})
			}
		})
		snap := Compile(o, Settings{})
		prev := newView(snap, nil)
		b.Run("encode-diff/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if v := newView(snap, prev); !v.same() {
					b.Fatal("changed")
				}
			}
		})
	}
}

// BenchmarkPolicies is what 10 000 policies of every kind cost among as many pods, compiled and encoded anew.
func BenchmarkPolicies(b *testing.B) {
	o := cluster(10_000, 1_000)
	changes := map[source.Key]source.Object{}
	for i := range 10_000 {
		ns, name := fmt.Sprintf("ns-%d", i%20), fmt.Sprintf("p-%d", i)
		about := fmt.Sprintf("metadata: {name: %s, namespace: %s}\nspec: {selector: {matchLabels: {app: svc-%d, team: shop}}, ", name, ns, i%1000)
		switch i % 10 {
		case 0:
			changes[source.Key{Kind: "PeerAuthentication", Namespace: ns, Name: name}] = object(b, "PeerAuthentication", about+"mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}")
		case 1:
			changes[source.Key{Kind: "AuthorizationPolicy", Namespace: ns, Name: name}] = object(b, "AuthorizationPolicy", about+"action: DENY, rules: [{to: [{operation: {paths: [/x], ports: ['80']}}]}]}")
		default:
			changes[source.Key{Kind: "AuthorizationPolicy", Namespace: ns, Name: name}] = object(b, "AuthorizationPolicy", about+
				"rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b, 'cluster.local/ns/c/*'], ipBlocks: [10.0.0.0/8]}}], to: [{operation: {ports: ['8080']}}]}]}")
		}
	}
	o = o.With(changes)
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Compile(o, Settings{})
		}
	})
	snap := Compile(o, Settings{})
	prev := newView(snap, nil)
	b.Run("encode-diff", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if v := newView(snap, prev); !v.same() {
				b.Fatal("changed")
			}
		}
	})
}

// BenchmarkChange is what one pod's change costs from objects to the bytes for one proxy.
func BenchmarkChange(b *testing.B) {
	o := cluster(10_000, 1_000)
	var changed *corev1.Pod
	for _, p := range o.Pods {
		changed = p.DeepCopy()
		break
	}
	key := source.Key{Kind: "Pod", Namespace: changed.Namespace, Name: changed.Name}
	v := newView(Compile(o, Settings{}), nil)
	sub, _ := begin(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress})
	sub.update(v, nil, false)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		p := changed.DeepCopy()
		p.Labels["version"] = fmt.Sprint(i)
		o = o.With(map[source.Key]source.Object{key: p})
		v = newView(Compile(o, Settings{}), v)
		if d := sub.update(v, nil, false); len(d.changed) != 1 {
			b.Fatalf("%d resources", len(d.changed))
		}
	}
}
