// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
	"github.com/ambientlab/ambientlab/dataplane/source/kube/kubetest"
)

const namespaces = `apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
`

// The parts share one server, since a real one takes seconds to start.
func TestCluster(t *testing.T) {
	kubetest.Each(t, func(t *testing.T, k *kubetest.Server) {
		k.Apply(t, namespaces)
		k.Apply(t, kubetest.Definitions(t))
		api, err := kube.Connect(k.Kubeconfig, "test")
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []struct {
			name string
			test func(*testing.T, *kubetest.Server, *kube.Cluster)
		}{
			{"authority", testAuthority},
			{"roots", testRoots},
			{"statuses", testStatuses},
			{"service status", testServiceStatus},
			{"tokens", testReviews},
			{"writer", testWriter},
		} {
			t.Run(part.name, func(t *testing.T) { part.test(t, k, api) })
		}
	})
}

// All replicas must have the root of the first, and follow every step of a change of it.
func testAuthority(t *testing.T, k *kubetest.Server, api *kube.Cluster) {
	const replicas = 4
	var all [replicas]*identity.Authority
	var wait sync.WaitGroup
	for i := range all {
		wait.Go(func() {
			store, err := NewSecret(api, "istio-system")
			if err == nil {
				all[i], err = identity.OpenAuthority(t.Context(), store, "cluster.local")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if t.Failed() {
		return
	}
	made := 0
	for _, a := range all {
		if a.State().Created {
			made++
		}
		if string(a.RootsPEM()) != string(all[0].RootsPEM()) {
			t.Error("two replicas have different roots")
		}
	}
	if made != 1 {
		t.Errorf("%d replicas say that they made the root, want 1", made)
	}
	store, err := NewSecret(api, "istio-system")
	if err != nil {
		t.Fatal(err)
	}
	follow(t, func(ctx context.Context) {
		all[1].Watch(ctx, slog.New(slog.DiscardHandler), func() {})
	})
	k.Apply(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: istio-ca-secret, namespace: istio-system}\ndata: {note: eA==}\n")
	version := 1
	for _, step := range []struct {
		name  string
		do    func() error
		roots int
	}{
		{"add", func() error { return identity.AddRoot(t.Context(), store, "cluster.local") }, 2},
		{"sign", func() error { return identity.SignWithNewRoot(t.Context(), store) }, 2},
		{"drop", func() error { return identity.DropOldRoots(t.Context(), store) }, 1},
		{"intermediate", func() error { return identity.NewIntermediate(t.Context(), store, "cluster.local") }, 1},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		version++
		eventually(t, step.name+" is followed", func() bool { s := all[1].State(); return s.Version == version && len(s.Roots) == step.roots })
	}
	if all[0].State().Version != 1 {
		t.Error("control: a replica that does not watch has followed")
	}
	data, _ := k.Get(t, "Secret", "istio-system", SecretName)["data"].(map[string]any)
	for _, name := range []string{"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem", "note"} {
		if s, _ := data[name].(string); s == "" {
			t.Errorf("the Secret has no %s", name)
		}
	}
	if _, there := data["ca-key-next.pem"]; there || data["ca-key-old.pem"] != nil {
		t.Error("a key that signs no more is left in the Secret")
	}
	if err := identity.DropOldRoots(t.Context(), store); err == nil || !strings.Contains(err.Error(), "Secret istio-system/istio-ca-secret") {
		t.Errorf("out of order: %v", err)
	}
}

func testRoots(t *testing.T, k *kubetest.Server, api *kube.Cluster) {
	src := read(t, api, "Namespace")
	r, err := NewRoots(api, src, []byte("one"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	bundle := func(namespace string) string {
		data, _ := k.Get(t, "ConfigMap", namespace, ConfigMapName)["data"].(map[string]any)
		s, _ := data[RootsKey].(string)
		return s
	}
	if got := bundle("shop"); got != "" {
		t.Fatalf("control: %q before anybody wrote", got)
	}
	follow(t, r.Write)
	for _, ns := range []string{"shop", "istio-system", "default"} {
		eventually(t, "roots in "+ns, func() bool { return bundle(ns) == "one" })
	}
	k.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: bank}\n")
	eventually(t, "roots in a new namespace", func() bool { return bundle("bank") == "one" })
	k.Apply(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "+ConfigMapName+", namespace: bank}\ndata: {root-cert.pem: forged}\n")
	eventually(t, "the repair", func() bool { return bundle("bank") == "one" })
	k.Delete(t, "ConfigMap", "shop", ConfigMapName)
	eventually(t, "what was deleted is back", func() bool { return bundle("shop") == "one" })
	all := int64(len(src.Load().Namespaces))
	eventually(t, "one write each, a repair and what was deleted", func() bool { return r.Writes() >= all+2 }) // counted once the answer is here
	before := r.Writes()
	r.Set([]byte("two"))
	eventually(t, "another root everywhere", func() bool { return bundle("shop") == "two" && bundle("bank") == "two" && bundle("default") == "two" })
	eventually(t, "as many writes as namespaces", func() bool { return r.Writes() >= before+all })
	k.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: bank, labels: {a: b}}\n")
	eventually(t, "the label", func() bool { return src.Load().Namespaces["bank"].Labels["a"] == "b" })
	if n := r.Writes() - before; n != all {
		t.Errorf("%d writes for %d namespaces: what was right was written again", n, all)
	}
}

func testStatuses(t *testing.T, k *kubetest.Server, api *kube.Cluster) {
	for _, name := range []string{"a", "b"} {
		k.Apply(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: "+name+", namespace: shop}\nspec: {action: DENY}\n")
	}
	k.ApplyStatus(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n"+
		"status: {conditions: [{type: Other, status: 'True', lastTransitionTime: '2026-01-01T00:00:00Z'}]}\n")
	src := read(t, api)
	s, err := NewStatuses(api, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "policies", func() bool {
		return src.Load().AuthorizationPolicies["shop/b"] != nil && len(src.Load().AuthorizationPolicies["shop/a"].Status.GetConditions()) == 1
	})
	said := func(name string) string {
		status, _ := k.Get(t, "AuthorizationPolicy", "shop", name)["status"].(map[string]any)
		list, _ := status["conditions"].([]any)
		var out []string
		for _, c := range list {
			c := c.(map[string]any)
			out = append(out, fmt.Sprintf("%v=%v %v", c["type"], c["status"], c["message"]))
		}
		return strings.Join(out, ", ")
	}
	version := func() string {
		v, _ := k.Get(t, "AuthorizationPolicy", "shop", "a")["metadata"].(map[string]any)["resourceVersion"].(string)
		return v
	}
	accepted := func(name, message string) control.Condition {
		return control.Condition{
			Object: source.Key{Kind: "AuthorizationPolicy", Namespace: "shop", Name: name}, Generation: 1, Accepted: true, Reason: control.ReasonAccepted, Message: message,
		}
	}
	s.Offer(src.Load(), []control.Condition{accepted("a", "one"), accepted("b", "one")})
	if got := said("a"); got != "Other=True <nil>" {
		t.Fatalf("control: %q before anybody wrote", got)
	}
	follow(t, s.Write)
	eventually(t, "a condition beside another's", func() bool { return said("a") == "Other=True <nil>, ZtunnelAccepted=True one" })
	eventually(t, "another policy's", func() bool { return said("b") == "ZtunnelAccepted=True one" })

	// The same once more, of objects that show it and of objects that are out of date.
	eventually(t, "the source has it", func() bool { return len(src.Load().AuthorizationPolicies["shop/a"].Status.GetConditions()) == 2 })
	eventually(t, "both were counted", func() bool { return s.Writes() == 2 }) // after the server had them
	old, before, writes := src.Load(), version(), s.Writes()
	s.Offer(src.Load(), []control.Condition{accepted("a", "one"), accepted("b", "one")})
	s.Offer(src.Load(), []control.Condition{accepted("a", "one"), accepted("b", "two")})
	eventually(t, "what changed", func() bool { return said("b") == "ZtunnelAccepted=True two" && s.Writes() > writes })
	if version() != before || s.Writes() != writes+1 {
		t.Errorf("what was right was written again: %d writes", s.Writes()-writes)
	}
	s.Offer(old, []control.Condition{accepted("a", "one"), accepted("b", "three")})
	eventually(t, "what changed, after a conflict", func() bool { return said("b") == "ZtunnelAccepted=True three" })
	eventually(t, "the source has it", func() bool {
		return strings.Contains(fmt.Sprint(src.Load().AuthorizationPolicies["shop/b"].Status.GetConditions()), "three")
	})
	s.Offer(src.Load(), []control.Condition{accepted("b", "three")})
	eventually(t, "a condition that is no more", func() bool { return said("a") == "Other=True <nil>" })
	// A policy that never was good: nobody but the server knows it.
	s.Offer(src.Load(), []control.Condition{accepted("b", "three"), {Object: source.Key{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "a"}, Reason: "Invalid", Message: "no"}})
	eventually(t, "a refusal", func() bool { return said("a") == "Other=True <nil>, ZtunnelAccepted=False no" })
	s.Offer(&source.Objects{}, []control.Condition{{Object: source.Key{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "b"}, Reason: "Invalid", Message: "unknown"},
		{Object: source.Key{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "gone"}, Reason: "Invalid", Message: "unknown"}})
	eventually(t, "a refusal of what was not read", func() bool { return said("b") == "ZtunnelAccepted=False unknown" })
	if s.Errors() != 0 {
		t.Errorf("%d errors", s.Errors())
	}
}

func testServiceStatus(t *testing.T, k *kubetest.Server, api *kube.Cluster) {
	k.Apply(t, "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{port: 80, protocol: TCP, targetPort: 80}]}\n")
	k.ApplyStatus(t, "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nstatus: {conditions: [{type: Other, status: 'True', reason: Test, message: '', "+
		"lastTransitionTime: '2026-01-01T00:00:00Z'}]}\n")
	src := read(t, api, "Service")
	s, err := NewStatuses(api, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Offer(src.Load(), []control.Condition{{Object: source.Key{Kind: "Service", Namespace: "shop", Name: "cart"}, Reason: "UnsupportedValue", Message: "m"}})
	follow(t, s.Write)
	eventually(t, "a condition beside another's", func() bool {
		c := src.Load().Services["shop/cart"].Status.Conditions
		return len(c) == 2 && c[0].Type == "Other" && c[1].Type == "istio.io/WaypointBound" && c[1].Status == "False" && !c[1].LastTransitionTime.IsZero()
	})
	s.Offer(src.Load(), nil)
	eventually(t, "a condition that is no more", func() bool {
		c := src.Load().Services["shop/cart"].Status.Conditions
		return len(c) == 1 && c[0].Type == "Other"
	})
}

func testReviews(t *testing.T, k *kubetest.Server, api *kube.Cluster) {
	k.Apply(t, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: cart, namespace: shop}\n---\n"+
		"apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop}\nspec: {nodeName: node1, serviceAccountName: cart, containers: [{name: app, image: app}]}\n")
	r, err := NewReviews(api)
	if err != nil {
		t.Fatal(err)
	}
	token := k.Token(t, "shop", "cart", "cart", control.TokenAudience)
	var first control.Caller
	for range 3 {
		if first, err = r.Authenticate(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}
	if first.Account() != "shop/cart" || first.Pod.Name != "cart" || first.Pod.UID == "" || first.Node.Name != "node1" {
		t.Errorf("caller %+v", first)
	}
	if r.Asked() != 1 || r.Cached() != 2 {
		t.Errorf("asked %d times, cached %d, want 1 and 2", r.Asked(), r.Cached())
	}
	foreign := k.Token(t, "shop", "cart", "cart", "somebody-else")
	for range 2 {
		if _, err := r.Authenticate(t.Context(), foreign); err == nil || !strings.Contains(err.Error(), "not accepted") {
			t.Errorf("a token for somebody else: %v", err)
		}
	}
	if r.Asked() != 2 {
		t.Errorf("asked %d times, want 2: a refusal is remembered, too", r.Asked())
	}
	forged := token[:len(token)-8] + "AAAAAAAA"
	if _, err := r.Authenticate(t.Context(), forged); err == nil {
		t.Error("a forged token is accepted")
	}
	unseen := k.Token(t, "shop", "cart", "cart", control.TokenAudience)
	k.Stop(t)
	if again, err := r.Authenticate(t.Context(), token); err != nil || again != first {
		t.Errorf("without a server, one that is known: %+v, %v", again, err)
	}
	if _, err := r.Authenticate(t.Context(), unseen); err == nil || !strings.Contains(err.Error(), "cannot be reviewed") {
		t.Errorf("without a server, one that is not known: %v", err)
	}
	k.Start(t)
	eventually(t, "the one that was not known", func() bool { _, err := r.Authenticate(t.Context(), unseen); return err == nil })
}

func testWriter(t *testing.T, k *kubetest.Server, api *kube.Cluster) {
	type replica struct {
		*Writer
		stop    func()
		writing chan bool
	}
	start := func(name string) *replica {
		w, err := NewWriter(api, LeaseConfig{
			Namespace: "istio-system", Holder: name, Duration: 3 * time.Second, Renew: 2 * time.Second, Retry: 200 * time.Millisecond,
			Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		r := &replica{Writer: w, writing: make(chan bool, 16)}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- w.Run(ctx, func(term context.Context) { r.writing <- true; <-term.Done(); r.writing <- false })
		}()
		r.stop = sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(r.stop)
		return r
	}
	is := func(r *replica, what string, want bool) {
		t.Helper()
		select {
		case got := <-r.writing:
			if got != want {
				t.Fatalf("%s: writing %v", what, got)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: not within a minute", what)
		}
	}
	a := start("a")
	is(a, "the only one", true)
	b := start("b")
	eventually(t, "b has asked", func() bool {
		spec, _ := k.Get(t, "Lease", "istio-system", LeaseName)["spec"].(map[string]any)
		return spec["holderIdentity"] == "a" && !b.Leading()
	})
	a.stop()
	is(a, "the one that ended", false)
	is(b, "its successor", true)
	if len(a.writing) != 0 || a.Leading() {
		t.Error("two write")
	}
	k.Stop(t)
	is(b, "without a server", false)
	k.Start(t)
	is(b, "with a server again", true)
}

func read(t *testing.T, api *kube.Cluster, kinds ...string) *kube.Source {
	t.Helper()
	src, err := kube.New(api, kube.Options{Kinds: kinds, Retry: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	follow(t, func(ctx context.Context) {
		if err := src.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	<-src.Ready()
	return src
}

// follow runs something until the test ends, and waits for it then.
func follow(t *testing.T, run func(context.Context)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// eventually waits for what cannot be waited for otherwise.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}
