// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/dataplane/source/kube/kubetest"
)

const cluster = `apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {topology.kubernetes.io/region: r1}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside, namespace: shop, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.1]}]
ports: [{name: http, port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: none, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {app: cart}}
spec: {nodeName: node2, serviceAccountName: cart, containers: [{name: app, image: app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}, annotations: {keep: "1", kubectl.kubernetes.io/last-applied-configuration: "{}"}}
spec:
  nodeName: node1
  serviceAccountName: cart
  volumes: [{name: v, emptyDir: {}}]
  containers: [{name: app, image: app, command: [/app], env: [{name: A, value: b}], ports: [{name: http, containerPort: 8080, protocol: TCP}]}]
`

const cartStatus = `apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], containerStatuses: []}
`

func policy(name, source string) string {
	return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name + ", namespace: shop}\n" +
		"spec: {action: DENY, rules: [{from: [{source: {" + source + "}}]}]}\n"
}

// The parts share one server, since a real one takes seconds to start.
func TestSource(t *testing.T) {
	kubetest.Each(t, func(t *testing.T, k *kubetest.Server) {
		k.Apply(t, cluster)
		k.ApplyStatus(t, cartStatus)
		s := start(t, k, Options{})
		for _, part := range []struct {
			name string
			test func(*testing.T, *kubetest.Server, *running)
		}{
			{"everything at once", testFirst},
			{"what source/file delivers", testSame},
			{"one node", testNode},
			{"kinds installed later", testInstalled},
			{"bad objects", testBad},
			{"changes", testChanges},
			{"kind removed", testRemoved},
			{"outage", testOutage},
			{"started before the server", testEarly},
		} {
			t.Run(part.name, func(t *testing.T) { part.test(t, k, s) })
		}
	})
}

func testFirst(t *testing.T, _ *kubetest.Server, s *running) {
	if diff := cmp.Diff(map[string]bool{"shop/cart": true, "shop/other": true}, keys(s.first.Pods)); diff != "" {
		t.Error(diff)
	}
	if len(s.first.Services) == 0 || s.first.Namespaces["shop"] == nil || s.first.Nodes["node1"] == nil || s.first.ServiceAccounts["shop/cart"] == nil ||
		s.first.EndpointSlices["shop/outside"] == nil {
		t.Errorf("the first snapshot has %d objects, and lacks some", s.first.Len())
	}
	p := s.first.Pods["shop/cart"]
	if p.Status.PodIP != "10.0.0.1" || p.Spec.Containers[0].Ports[0].ContainerPort != 8080 || p.UID == "" {
		t.Errorf("a pod is not what it was: %+v", p)
	}
	if p.ManagedFields != nil || p.Spec.Volumes != nil || p.Spec.Containers[0].Env != nil || p.Spec.Containers[0].Image != "" {
		t.Errorf("a pod carries what nobody reads: %+v", p)
	}
	if diff := cmp.Diff(map[string]string{"keep": "1"}, p.Annotations); diff != "" {
		t.Error(diff)
	}
}

// What control makes of a cluster must not depend on where it reads it.
func testSame(t *testing.T, _ *kubetest.Server, s *running) {
	for doc := range strings.SplitSeq(cluster, "---\n") {
		want, problems := file.Decode([]byte(doc))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		key := source.Key{Kind: want.GetObjectKind().GroupVersionKind().Kind, Namespace: want.GetNamespace(), Name: want.GetName()}
		got := s.Load().Get(key)
		if got == nil {
			t.Errorf("%s is missing", key)
			continue
		}
		if got.GetObjectKind().GroupVersionKind() != want.GetObjectKind().GroupVersionKind() {
			t.Errorf("%s is a %v", key, got.GetObjectKind().GroupVersionKind())
		}
		for k, v := range want.GetLabels() {
			if got.GetLabels()[k] != v {
				t.Errorf("%s: label %s is %q, want %q", key, k, got.GetLabels()[k], v)
			}
		}
	}
}

func testNode(t *testing.T, k *kubetest.Server, all *running) {
	s := start(t, k, Options{Kinds: []string{"Pod", "Node"}, Node: "node2"})
	if diff := cmp.Diff(map[string]bool{"shop/other": true}, keys(s.first.Pods)); diff != "" {
		t.Error(diff)
	}
	if s.first.Len() != 1 {
		t.Errorf("%d objects, want the pod alone", s.first.Len())
	}
	if len(all.Load().Pods) != 2 {
		t.Errorf("control: without a node %d pods", len(all.Load().Pods))
	}
	if _, err := New(connect(t, k), Options{Kinds: []string{"Nonsense"}}); err == nil {
		t.Error("a kind that there is not is read")
	}
}

func testInstalled(t *testing.T, k *kubetest.Server, s *running) {
	if n := len(s.Load().AuthorizationPolicies); n != 0 {
		t.Fatalf("control: %d policies of a kind that is not installed", n)
	}
	k.Apply(t, kubetest.Definitions(t))
	k.Apply(t, policy("p", "namespaces: [web]"))
	o := s.until(t, "a policy", func(o *source.Objects) bool { return o.AuthorizationPolicies["shop/p"] != nil })
	if got := o.AuthorizationPolicies["shop/p"].Spec.GetRules()[0].GetFrom()[0].GetSource().GetNamespaces(); len(got) != 1 || got[0] != "web" {
		t.Errorf("namespaces %v", got)
	}
	k.ApplyStatus(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"+
		"status: {strange: true, conditions: [{type: ZtunnelAccepted, status: 'True', observedGeneration: '3'}]}\n")
	s.until(t, "its status", func(o *source.Objects) bool {
		c := o.AuthorizationPolicies["shop/p"].Status.GetConditions()
		return len(c) == 1 && c[0].GetType() == "ZtunnelAccepted" && c[0].GetObservedGeneration() == 3
	})
}

// Design, decision 4: a bad object keeps its own last good version, all others apply.
func testBad(t *testing.T, k *kubetest.Server, s *running) {
	if p := s.Problems(); len(p) != 0 {
		t.Fatalf("control: %v", p)
	}
	before := s.Load().AuthorizationPolicies["shop/p"].Spec.String()
	k.Apply(t, policy("p", "namespace: [web]"))
	k.Apply(t, policy("new", "ipBlocks: [nonsense]"))
	k.Apply(t, policy("good", "namespaces: [web]"))
	o := s.until(t, "two problems and a good policy", func(o *source.Objects) bool {
		return len(s.Problems()) == 2 && o.AuthorizationPolicies["shop/good"] != nil
	})
	want := []string{
		`AuthorizationPolicy shop/new: spec.rules[0].from[0].source.ipBlocks[0]: "nonsense" is neither an IP address nor a CIDR`,
		"AuthorizationPolicy shop/p: spec.rules[0].from[0].source.namespace: unknown field",
	}
	if diff := cmp.Diff(want, texts(s.Problems())); diff != "" {
		t.Error(diff)
	}
	if now := o.AuthorizationPolicies["shop/p"]; now == nil || now.Spec.String() != before {
		t.Errorf("the last good version is not there any more: %v", now)
	}
	if o.AuthorizationPolicies["shop/new"] != nil {
		t.Error("a policy that never was good is there")
	}
	k.Apply(t, policy("p", "namespaces: [bank]"))
	k.Delete(t, "AuthorizationPolicy", "shop", "new")
	s.until(t, "the cure", func(o *source.Objects) bool {
		return len(s.Problems()) == 0 && strings.Contains(o.AuthorizationPolicies["shop/p"].Spec.String(), "bank")
	})
}

func testChanges(t *testing.T, k *kubetest.Server, s *running) {
	before := s.Load()
	k.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: bank}\n")
	k.Apply(t, strings.ReplaceAll(strings.Split(cluster, "---\n")[6], "other", "third"))
	o := s.until(t, "a pod", func(o *source.Objects) bool { return o.Pods["shop/third"] != nil && o.Namespaces["bank"] != nil })
	if o.Pods["shop/cart"] != before.Pods["shop/cart"] {
		t.Error("an untouched pod is not the same object any more")
	}
	if before.Pods["shop/third"] != nil {
		t.Error("an old snapshot changed")
	}
	k.Delete(t, "Pod", "shop", "third")
	s.until(t, "no pod", func(o *source.Objects) bool { return o.Pods["shop/third"] == nil })
}

func testRemoved(t *testing.T, k *kubetest.Server, s *running) {
	if s.Load().AuthorizationPolicies["shop/p"] == nil {
		t.Fatal("control: no policy")
	}
	k.Delete(t, "CustomResourceDefinition", "", "authorizationpolicies.security.istio.io")
	s.until(t, "no policy", func(o *source.Objects) bool { return len(o.AuthorizationPolicies) == 0 })
	k.Apply(t, kubetest.Definition(t, "AuthorizationPolicy"))
	k.Apply(t, policy("again", "namespaces: [web]"))
	s.until(t, "a policy again", func(o *source.Objects) bool { return o.AuthorizationPolicies["shop/again"] != nil })
}

func testOutage(t *testing.T, k *kubetest.Server, s *running) {
	s.log.await(t, "healthy", func(string) bool { return len(s.Health().Broken) == 0 })
	if h := s.Health(); h.Outages != 0 || !h.Since.IsZero() {
		t.Fatalf("control: %+v before the outage", h)
	}
	k.Stop(t)
	s.log.await(t, "the outage", func(string) bool { return len(s.Health().Broken) == len(source.Kinds()) })
	if s.Load().Pods["shop/cart"] == nil || s.Load().AuthorizationPolicies["shop/again"] == nil {
		t.Error("objects went with the server")
	}
	k.Start(t)
	k.Delete(t, "Pod", "shop", "other")
	k.Apply(t, policy("after", "namespaces: [web]"))
	s.until(t, "what happened after the outage", func(o *source.Objects) bool {
		return o.Pods["shop/other"] == nil && o.AuthorizationPolicies["shop/after"] != nil && len(s.Health().Broken) == 0
	})
	s.log.await(t, "the end of the outage in the log", func(text string) bool { return strings.Contains(text, "API server is read again") })
	if h := s.Health(); h.Outages != 1 {
		t.Errorf("%d outages, want 1", h.Outages)
	}
	if n := strings.Count(s.log.String(), "API server cannot be read; what"); n != 1 {
		t.Errorf("the outage is logged %d times:\n%s", n, s.log.String())
	}
}

func testEarly(t *testing.T, k *kubetest.Server, _ *running) {
	k.Stop(t)
	s := launch(t, k, Options{})
	s.log.await(t, "that the server is away", func(string) bool { return len(s.Health().Broken) > 0 })
	select {
	case <-s.Ready():
		t.Error("ready without a server")
	default:
	}
	k.Start(t)
	<-s.Ready()
	if s.Load().Pods["shop/cart"] == nil {
		t.Error("ready without a pod")
	}
}

// running is a source that runs until the test ends.
type running struct {
	*Source
	first *source.Objects
	log   *logBuffer
}

func connect(t *testing.T, k *kubetest.Server) *Cluster {
	t.Helper()
	c, err := Connect(k.Kubeconfig, "test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func launch(t *testing.T, k *kubetest.Server, o Options) *running {
	t.Helper()
	r := &running{log: &logBuffer{}}
	o.Log, o.Retry = slog.New(slog.NewTextHandler(r.log, nil)), 50*time.Millisecond
	var err error
	if r.Source, err = New(connect(t, k), o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func start(t *testing.T, k *kubetest.Server, o Options) *running {
	t.Helper()
	r := launch(t, k, o)
	if n := r.Load().Len(); n != 0 {
		t.Errorf("%d objects before anything was read", n)
	}
	<-r.Ready()
	r.first = r.Load()
	return r
}

// until waits for a snapshot that ok likes.
func (r *running) until(t *testing.T, what string, ok func(*source.Objects) bool) *source.Objects {
	t.Helper()
	late := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond) // health changes without a snapshot
	defer tick.Stop()
	for {
		changed := r.Changed()
		if o := r.Load(); ok(o) {
			return o
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within a minute; problems %v, log\n%s", what, texts(r.Problems()), r.log.String())
		}
	}
}

func keys[T any](m map[string]T) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

func texts(problems []source.Problem) []string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Error())
	}
	return out
}

// logBuffer is a log that can be waited for.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logBuffer) await(t *testing.T, what string, ok func(text string) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for !ok(l.String()) {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within a minute:\n%s", what, l.String())
		}
	}
}
