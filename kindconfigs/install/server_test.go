// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/control/cluster"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
	"github.com/ambientlab/ambientlab/dataplane/source/kube/kubetest"
)

// budget is how long anything here may take on a busy machine.
const budget = 90 * time.Second

// A real API server takes every object as it is, lets the control plane do its work as its account, and little else.
func TestOnAnAPIServer(t *testing.T) {
	kubetest.Each(t, func(t *testing.T, s *kubetest.Server) {
		if s.Name == "fake" {
			t.Skip("the fake judges neither objects nor accounts")
		}
		admin, err := kube.Connect(s.Kubeconfig, "test")
		if err != nil {
			t.Fatal(err)
		}
		objs := objects(t, Options{})
		first := apply(t, admin, objs)
		for id, version := range apply(t, admin, objs) {
			if first[id] != version {
				t.Errorf("%s: applied again, it changed", id)
			}
		}
		t.Run("control", func(t *testing.T) { testControl(t, s, as(t, s, ControlName)) })
		t.Run("agent", func(t *testing.T) { follow(t, as(t, s, agentAccount), "Pod", "Namespace", "Node") })
		t.Run("rights", func(t *testing.T) { testRights(t, admin) })
	})
}

// apply is what `kubectl apply --server-side` does, and the version of each object after it.
func apply(t *testing.T, c *kube.Cluster, objs []runtime.Object) map[string]string {
	t.Helper()
	client, err := dynamic.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, obj := range objs {
		gvk := obj.GetObjectKind().GroupVersionKind()
		resource, _ := meta.UnsafeGuessKindToResource(gvk)
		m, err := meta.Accessor(obj)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := plain(obj)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		got, err := client.Resource(resource).Namespace(m.GetNamespace()).Patch(t.Context(), m.GetName(), types.ApplyPatchType, data,
			metav1.PatchOptions{FieldManager: "test", FieldValidation: metav1.FieldValidationStrict})
		if err != nil {
			t.Fatalf("apply %s %s: %v", gvk.Kind, m.GetName(), err)
		}
		if gvk.Kind != "CustomResourceDefinition" { // its status changes by itself
			versions[gvk.Kind+" "+m.GetName()] = got.GetResourceVersion()
		}
	}
	return versions
}

// as is the server as an account of the installation sees it.
func as(t *testing.T, s *kubetest.Server, account string) *kube.Cluster {
	t.Helper()
	text, err := os.ReadFile(s.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	user := fmt.Sprintf(`user: {as: "system:serviceaccount:%s:%s", as-groups: ["system:serviceaccounts", "system:authenticated"], token`, Namespace, account)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), "user: {token", user, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := kube.Connect(file, "test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// follow reads kinds until the test ends, and returns when all were read once.
func follow(t *testing.T, c *kube.Cluster, kinds ...string) *kube.Source {
	t.Helper()
	src, err := kube.New(c, kube.Options{Kinds: kinds, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) { _ = src.Run(ctx) })
	select {
	case <-src.Ready():
	case <-time.After(budget):
		t.Fatalf("not all kinds can be read: %+v", src.Health())
	}
	return src
}

func background(t *testing.T, run func(context.Context)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// testControl does all that a control plane does with an API server.
func testControl(t *testing.T, s *kubetest.Server, c *kube.Cluster) {
	s.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n"+
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {action: DENY}\n---\n"+
		"apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{port: 80, protocol: TCP, targetPort: 80}]}\n---\n"+
		"apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: cart, namespace: shop}\n")
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	src := follow(t, c, kinds()...)
	store, err := cluster.NewSecret(c, Namespace)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := identity.OpenAuthority(t.Context(), store, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	roots, err := cluster.NewRoots(c, src, authority.RootsPEM(), log)
	if err != nil {
		t.Fatal(err)
	}
	statuses, err := cluster.NewStatuses(c, log)
	if err != nil {
		t.Fatal(err)
	}
	accepted := func(kind, name string) control.Condition {
		return control.Condition{Object: source.Key{Kind: kind, Namespace: "shop", Name: name}, Generation: 1, Accepted: true, Reason: control.ReasonAccepted}
	}
	statuses.Offer(src.Load(), []control.Condition{accepted("AuthorizationPolicy", "a"), accepted("Service", "cart")})
	writer, err := cluster.NewWriter(c, cluster.LeaseConfig{Namespace: Namespace, Holder: "test", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) { _ = writer.Run(ctx, statuses.Write, roots.Write) })
	eventually(t, "roots in the namespace", func() bool { return s.Get(t, "ConfigMap", "shop", rootsConfigMap) != nil })
	eventually(t, "two conditions", func() bool { return statuses.Writes() == 2 })
	reviews, err := cluster.NewReviews(c)
	if err != nil {
		t.Fatal(err)
	}
	if caller, err := reviews.Authenticate(t.Context(), s.Token(t, "shop", "cart", "", tokenAudience)); err != nil || caller.Account() != "shop/cart" {
		t.Errorf("token of %+v, %v", caller, err)
	}
	if statuses.Errors() != 0 {
		t.Errorf("%d errors", statuses.Errors())
	}
}

// kinds are those that a control plane reads.
func kinds() (out []string) {
	for _, k := range source.Kinds() {
		if k.Name != "NetworkPolicy" {
			out = append(out, k.Name)
		}
	}
	return out
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(budget)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %s", what, budget)
		}
	}
}

// testRights asks the server what accounts may do: beside what they need, what must stay forbidden.
func testRights(t *testing.T, admin *kube.Cluster) {
	client, err := kubernetes.NewForConfig(admin.Config())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		account, verb, group, resource, sub, namespace, name string
		want                                                 bool
	}{
		{agentAccount, "patch", "", "pods", "status", "shop", "web", true},
		{agentAccount, "patch", "", "nodes", "", "", "node1", true},
		{agentAccount, "get", "apps", "daemonsets", "", Namespace, AgentName, true},
		{agentAccount, "create", "", "serviceaccounts", "token", Namespace, pluginAccount, true},
		{agentAccount, "create", "", "serviceaccounts", "token", Namespace, agentAccount, false},
		{pluginAccount, "get", "", "pods", "", "shop", "web", true},
		{pluginAccount, "patch", "", "pods", "status", "shop", "web", false},
		{pluginAccount, "create", "", "serviceaccounts", "token", Namespace, pluginAccount, false},
		{agentAccount, "patch", "", "pods", "", "shop", "web", false},
		{agentAccount, "get", "", "secrets", "", Namespace, caSecret, false},
		{agentAccount, "delete", "", "pods", "", "shop", "web", false},
		{ControlName, "get", "", "secrets", "", Namespace, caSecret, true},
		{ControlName, "get", "", "secrets", "", Namespace, "another", false},
		{ControlName, "get", "", "secrets", "", "shop", caSecret, false},
		{ControlName, "list", "", "secrets", "", Namespace, "", false},
		{ControlName, "patch", "", "configmaps", "", "shop", "another", false},
		{ControlName, "update", "security.istio.io", "authorizationpolicies", "", "shop", "a", false},
		{ZtunnelName, "get", "", "pods", "", "shop", "web", false},
		{ZtunnelName, "get", "", "secrets", "", Namespace, caSecret, false},
	} {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + Namespace + ":" + c.account, Groups: []string{"system:serviceaccounts", "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: c.verb, Group: c.group, Resource: c.resource, Subresource: c.sub, Namespace: c.namespace, Name: c.name,
			},
		}}
		got, err := client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Status.Allowed != c.want {
			t.Errorf("%s may %s %s/%s %s/%s: %v, want %v", c.account, c.verb, c.resource, c.sub, c.namespace, c.name, got.Status.Allowed, c.want)
		}
	}
}
