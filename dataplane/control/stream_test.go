// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/xds"
	"github.com/ambientlab/ambientlab/dataplane/xds/workloadapi"
)

func moved(p *corev1.Pod) { p.Labels["version"] = "v2" }

func TestDeltaSendsOnlyWhatChanged(t *testing.T) {
	web, cart := pod("shop", "web", "node1", "10.0.0.1", nil), pod("shop", "cart", "node1", "10.0.0.2", nil)
	svc := service("shop", "cart", "10.96.0.1", map[string]string{"app": "cart"})
	p := startPlane(t, web, cart, svc)
	c := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress})
	first, got := c.receive()
	if want := "shop/cart shop/cart.shop.svc.cluster.local shop/web"; got != want {
		t.Fatalf("first response %q, want %q", got, want)
	}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAuthorization})
	if r, got := c.receive(); got != "" || r.GetTypeUrl() != xds.TypeAuthorization {
		t.Fatalf("authorization: %q of %s, want an empty answer", got, r.GetTypeUrl())
	}

	p.source.set(web, pod("shop", "cart", "node1", "10.0.0.2", moved), svc)
	if _, got := c.receive(); got != "shop/cart" {
		t.Errorf("after a change of cart: %q", got)
	}
	p.source.set(web, pod("shop", "cart", "node1", "10.0.0.2", moved), pod("shop", "new", "node1", "10.0.0.3", nil))
	if _, got := c.receive(); got != "shop/cart shop/new -shop/cart.shop.svc.cluster.local" {
		t.Errorf("after a service went: %q", got)
	}

	// Reconnect with what the first response said: web is as it was, cart is not, the service is gone, new is new.
	c.cancel()
	c = p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress, InitialResourceVersions: versions(first)})
	if _, got := c.receive(); got != "shop/cart shop/new -shop/cart.shop.svc.cluster.local" {
		t.Errorf("after a reconnect: %q", got)
	}
}

// A policy object becomes a resource of its own, and only the workloads that it selects change.
func TestPoliciesArePushed(t *testing.T) {
	web, cart := pod("shop", "web", "node1", "10.0.0.1", nil), pod("shop", "cart", "node1", "10.0.0.2", nil)
	p := startPlane(t, web, cart)
	addresses := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress})
	policies := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAuthorization})
	addresses.receive()
	if _, got := policies.receive(); got != "" {
		t.Errorf("first %q", got)
	}
	about := "metadata: {name: cart, namespace: shop}\nspec: {selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}"
	p.source.set(web, cart, authorizationPolicy(t, about))
	first, got := policies.receive()
	if got != "shop/cart" {
		t.Errorf("policies %q", got)
	}
	r, got := addresses.receive()
	if got != "shop/cart" {
		t.Errorf("workloads %q", got)
	}
	w, _, err := xds.DecodeAddress(r.GetResources()[0].GetResource().GetValue())
	if err != nil || len(w.AuthorizationPolicies) != 1 || w.AuthorizationPolicies[0] != "shop/cart" {
		t.Errorf("%+v %v", w, err)
	}

	p.source.set(web, cart, authorizationPolicy(t, strings.Replace(about, "[shop]", "[other]", 1)))
	next, got := policies.receive()
	if got != "shop/cart" || next.GetResources()[0].GetVersion() == first.GetResources()[0].GetVersion() {
		t.Errorf("after an edit: %q of version %s", got, next.GetResources()[0].GetVersion())
	}
	policies.cancel()
	policies = p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAuthorization, InitialResourceVersions: versions(next)})
	if _, got := policies.receive(); got != "" {
		t.Errorf("after a reconnect: %q", got)
	}

	p.source.set(web, cart, peerAuthentication(t, "istio-system/default 01 STRICT"))
	if _, got := policies.receive(); got != "istio-system/istio_converted_static_strict -shop/cart" {
		t.Errorf("policies %q", got)
	}
	if _, got := addresses.receive(); got != "shop/cart shop/web" {
		t.Errorf("workloads %q", got)
	}
	page := httptest.NewRecorder()
	p.Handler().ServeHTTP(page, httptest.NewRequest("GET", "/debug/policies", nil))
	if !strings.Contains(page.Body.String(), `"Message": "Served to ztunnel as written."`) {
		t.Errorf("/debug/policies: %s", page.Body)
	}
}

// Versions are hashes of content, so a control plane that restarts sends nothing again.
func TestReconnectToAnotherControlPlane(t *testing.T) {
	objs := pod("shop", "web", "node1", "10.0.0.1", nil)
	first, _ := startPlane(t, objs).subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress}).receive()
	held := versions(first)
	held["Kubernetes//Pod/shop/gone"] = "1"
	c := startPlane(t, objs).subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress, InitialResourceVersions: held})
	if _, got := c.receive(); got != "-shop/gone" {
		t.Errorf("second control plane sent %q", got)
	}
}

func TestSameMeaningIsNotPushed(t *testing.T) {
	web := pod("shop", "web", "node1", "10.0.0.1", nil)
	p := startPlane(t, web)
	c := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress})
	c.receive()
	before := p.views.load()
	// An annotation that means nothing to the mesh, then a pod that does.
	p.source.set(pod("shop", "web", "node1", "10.0.0.1", func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "b"} }))
	eventually(t, "the annotation is compiled", func() bool { return p.views.load() != before })
	p.source.set(web, pod("shop", "cart", "node1", "10.0.0.2", nil))
	if _, got := c.receive(); got != "shop/cart" {
		t.Errorf("pushed %q", got)
	}
}

// Reference A2.1: the first request subscribes and unsubscribes "*", later ones name network/ip.
func TestOnDemand(t *testing.T) {
	web, cart := pod("shop", "web", "node1", "10.0.0.1", nil), pod("shop", "cart", "node1", "10.0.0.2", nil)
	svc := service("shop", "cart", "10.96.0.1", map[string]string{"app": "cart"})
	p := startPlane(t, web, cart, svc)
	c := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}})
	ask := func(names ...string) string {
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress, ResourceNamesSubscribe: names})
		_, got := c.receive()
		return got
	}
	if _, got := c.receive(); got != "" {
		t.Errorf("first answer %q, want an empty one", got)
	}
	for _, tc := range []struct{ name, want string }{
		{"/10.0.0.1", "shop/web"},
		{"/10.96.0.1", "shop/cart shop/cart.shop.svc.cluster.local"},
		{"/10.0.0.2", "shop/cart"}, // held already, answered again
		{"/10.0.0.99", "-/10.0.0.99"},
		{"other/10.0.0.1", "-other/10.0.0.1"},
	} {
		if got := ask(tc.name); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	// Only what was asked for is pushed: the unknown address appears, a stranger does not, web goes.
	p.source.set(cart, svc, pod("shop", "late", "node1", "10.0.0.99", nil), pod("shop", "stranger", "node1", "10.0.0.50", nil))
	if _, got := c.receive(); got != "shop/late -shop/web" {
		t.Errorf("pushed %q", got)
	}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress, ResourceNamesSubscribe: []string{"*"}})
	if _, got := c.receive(); got != "shop/stranger" {
		t.Errorf("after turning to a wildcard: %q", got)
	}
}

func TestOnDemandReconnect(t *testing.T) {
	web := pod("shop", "web", "node1", "10.0.0.1", nil)
	p := startPlane(t, web, pod("shop", "cart", "node1", "10.0.0.2", nil))
	version := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress})
	r, _ := version.receive()
	for _, tc := range []struct{ web, want string }{
		{"old", "shop/web -/10.0.0.9 -shop/gone"},
		{versions(r)["Kubernetes//Pod/shop/web"], "-/10.0.0.9 -shop/gone"},
	} {
		c := p.subscribe(t, &discovery.DeltaDiscoveryRequest{
			TypeUrl: xds.TypeAddress, ResourceNamesSubscribe: []string{"*", "/10.0.0.1", "/10.0.0.9"}, ResourceNamesUnsubscribe: []string{"*"},
			InitialResourceVersions: map[string]string{"Kubernetes//Pod/shop/web": tc.web, "Kubernetes//Pod/shop/gone": "1"},
		})
		if _, got := c.receive(); got != tc.want {
			t.Errorf("holds %s: answer %q, want %q", tc.web, got, tc.want)
		}
	}
}

func TestWorkloadType(t *testing.T) {
	p := startPlane(t, pod("shop", "web", "node1", "10.0.0.1", nil), service("shop", "web", "10.96.0.1", map[string]string{"app": "web"}))
	c := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeWorkload})
	r, got := c.receive()
	if got != "shop/web" {
		t.Fatalf("workloads %q", got)
	}
	w := &workloadapi.Workload{}
	if err := proto.Unmarshal(r.GetResources()[0].GetResource().GetValue(), w); err != nil || w.GetUid() != "Kubernetes//Pod/shop/web" {
		t.Errorf("%v %v", w, err)
	}
	p.source.set()
	if _, got := c.receive(); got != "-shop/web" {
		t.Errorf("after it went: %q", got)
	}
}

func TestRejectionIsShown(t *testing.T) {
	p := startPlane(t, pod("shop", "web", "node1", "10.0.0.1", nil))
	c := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress})
	r, _ := c.receive()
	state := func() TypeState {
		proxies := p.Proxies()
		if len(proxies) != 1 {
			return TypeState{}
		}
		return proxies[0].Types[xds.TypeAddress]
	}
	eventually(t, "the ACK", func() bool { return state().AckedVersion == r.GetSystemVersionInfo() })
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress, ResponseNonce: r.GetNonce(), ErrorDetail: &status.Status{Message: "shop/web: no"}})
	eventually(t, "the NACK", func() bool { return state().Rejected == "shop/web: no" })

	page := httptest.NewRecorder()
	p.Handler().ServeHTTP(page, httptest.NewRequest("GET", "/debug/", nil))
	for _, want := range []string{"ztunnel~10.0.0.1", "shop/web: no", `<th scope="row">Workloads</th><td>1</td>`} {
		if !strings.Contains(page.Body.String(), want) {
			t.Errorf("/debug/ does not show %q:\n%s", want, page.Body)
		}
	}
	page = httptest.NewRecorder()
	p.Handler().ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"pilot_xds 1\n", `pilot_total_xds_rejects{type="` + xds.TypeAddress + `"} 1` + "\n"} {
		if !strings.Contains(page.Body.String(), want) {
			t.Errorf("/metrics does not show %q:\n%s", want, page.Body)
		}
	}
	for _, path := range []string{"/debug/snapshot", "/debug/policies", "/debug/proxies", "/debug/problems", "/ready", "/debug/pprof/"} {
		page = httptest.NewRecorder()
		if p.Handler().ServeHTTP(page, httptest.NewRequest("GET", path, nil)); page.Code != 200 {
			t.Errorf("%s: %d", path, page.Code)
		}
	}
}

func TestStreamNeedsAToken(t *testing.T) {
	p := startPlane(t)
	for name, token := range map[string]string{
		"none":           "",
		"another issuer": newIssuer(t).sign(t, claims("istio-system", "ztunnel", "", "", "")),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if token != "" {
			ctx = withToken(ctx, token)
		}
		wire, err := discovery.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(ctx)
		if err == nil {
			_, err = wire.Recv()
		}
		if grpcstatus.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStopEndsStreams(t *testing.T) {
	p := startPlane(t, pod("shop", "web", "node1", "10.0.0.1", nil))
	c := p.subscribe(t, &discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeAddress})
	c.receive()
	start := time.Now()
	p.stop()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("stop took %v with an idle stream", took)
	}
	_, err := c.wire.Recv()
	if grpcstatus.Code(err) != codes.Unavailable && !errors.Is(err, io.EOF) {
		t.Errorf("stream ended with %v", err)
	}
	if n := len(p.Proxies()); n != 0 {
		t.Errorf("%d proxies are left", n)
	}
}
