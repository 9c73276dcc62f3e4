// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// peerAuthentication is "namespace/name created mode [app=value] [port=mode...]"; created is a second of a day.
func peerAuthentication(t *testing.T, short string) source.Object {
	t.Helper()
	f := strings.Fields(short)
	namespace, name, _ := strings.Cut(f[0], "/")
	spec, ports := "mtls: {mode: "+f[2]+"}", ""
	for _, part := range f[3:] {
		k, v, _ := strings.Cut(part, "=")
		if k == "app" {
			spec += ", selector: {matchLabels: {app: " + v + "}}"
			continue
		}
		ports += k + ": {mode: " + v + "}, "
	}
	if ports != "" {
		spec += ", portLevelMtls: {" + strings.TrimSuffix(ports, ", ") + "}"
	}
	return object(t, "PeerAuthentication", fmt.Sprintf("metadata: {name: %q, namespace: %s, creationTimestamp: \"2026-01-01T00:00:%sZ\"}\nspec: {%s}", name, namespace, f[1], spec))
}

func presence() []mesh.StringMatch { return []mesh.StringMatch{{Kind: mesh.MatchPresence}} }

// P4-03: precedence, ports and conflicts. The workload is shop/cart.
func TestPeerAuthentication(t *testing.T) {
	const static, converted = "istio-system/istio_converted_static_strict", "shop/converted_peer_authentication_w"
	except := func(ports ...uint16) []mesh.Rule {
		r := one(mesh.Match{NotPrincipals: presence()})
		for _, p := range ports {
			r.Clauses = append(r.Clauses, mesh.Clause{Matches: []mesh.Match{{NotDestinationPorts: []uint16{p}}}})
		}
		return []mesh.Rule{r}
	}
	only := func(ports ...uint16) (out []mesh.Rule) {
		for _, p := range ports {
			out = append(out, one(mesh.Match{NotPrincipals: presence(), DestinationPorts: []uint16{p}}))
		}
		return out
	}
	for _, tc := range []struct {
		name    string
		objects []string
		want    []string    // that the workload names
		rules   []mesh.Rule // of the converted policy
	}{
		{"mesh strict", []string{"istio-system/m 01 STRICT"}, []string{static}, nil},
		{"mesh permissive", []string{"istio-system/m 01 PERMISSIVE"}, nil, nil},
		{"namespace strict", []string{"shop/n 01 STRICT"}, []string{static}, nil},
		{"another namespace", []string{"other/n 01 STRICT"}, nil, nil},
		{"namespace disable under mesh strict", []string{"istio-system/m 01 STRICT", "shop/n 02 DISABLE"}, nil, nil},
		{"namespace unset under mesh strict", []string{"istio-system/m 01 STRICT", "shop/n 02 UNSET"}, []string{static}, nil},
		{"workload strict", []string{"shop/w 01 STRICT app=cart"}, []string{static}, nil},
		{"another workload", []string{"shop/w 01 STRICT app=web"}, nil, nil},
		{"workload permissive under strict", []string{"istio-system/m 01 STRICT", "shop/w 02 PERMISSIVE app=cart"}, nil, nil},
		{"workload unset under strict", []string{"shop/n 01 STRICT", "shop/w 02 UNSET app=cart"}, []string{static}, nil},
		{"selector in the root namespace", []string{"istio-system/w 01 STRICT app=cart"}, nil, nil},
		{"the oldest of the mesh", []string{"istio-system/a 02 PERMISSIVE", "istio-system/b 01 STRICT"}, []string{static}, nil},
		{"the oldest of the namespace", []string{"shop/a 02 STRICT", "shop/b 01 PERMISSIVE"}, nil, nil},
		{"the oldest of the workload", []string{"shop/a 02 PERMISSIVE app=cart", "shop/b 01 STRICT app=cart"}, []string{static}, nil},
		{"twins", []string{"shop/b 01 PERMISSIVE", "shop/a 01 STRICT"}, []string{static}, nil},

		{"strict but for ports", []string{"shop/w 01 STRICT app=cart 9000=PERMISSIVE 80=DISABLE 443=STRICT"}, []string{converted}, except(80, 9000)},
		{"strict on all ports anyway", []string{"shop/w 01 STRICT app=cart 80=STRICT"}, []string{static}, nil},
		{"permissive but for ports", []string{"shop/w 01 PERMISSIVE app=cart 9000=STRICT 443=STRICT 80=PERMISSIVE"}, []string{converted}, only(443, 9000)},
		{"permissive on all ports anyway", []string{"shop/w 01 DISABLE app=cart 80=PERMISSIVE"}, nil, nil},
		{"ports under nothing", []string{"shop/w 01 UNSET app=cart 80=STRICT 81=PERMISSIVE"}, []string{converted}, only(80)},
		{"ports under a strict namespace", []string{"shop/n 02 STRICT", "shop/w 01 UNSET app=cart 80=PERMISSIVE 81=STRICT"}, []string{converted}, except(80)},
		{"ports under a strict mesh, through an unset namespace", []string{"istio-system/m 01 STRICT", "shop/n 02 UNSET", "shop/w 01 UNSET app=cart 80=DISABLE"}, []string{converted}, except(80)},
		{"strict ports of a permissive workload in a strict namespace", []string{"shop/n 02 STRICT", "shop/w 01 PERMISSIVE app=cart 80=STRICT"}, []string{converted}, only(80)},
		{"unset port", []string{"shop/w 01 STRICT app=cart 80=UNSET"}, []string{static}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			objs := []source.Object{pod("shop", "cart", "n", "10.0.0.1", nil)}
			for _, o := range tc.objects {
				objs = append(objs, peerAuthentication(t, o))
			}
			s := Compile(objectsOf(objs...), Settings{})
			if diff := cmp.Diff(tc.want, s.Workloads[0].AuthorizationPolicies); diff != "" {
				t.Error(diff)
			}
			policies := map[string]*mesh.Policy{}
			for _, p := range s.Policies {
				policies[p.Key()] = p
				if p.Scope != mesh.ScopePolicyWorkload || p.Action != mesh.Deny || p.DryRun {
					t.Errorf("%+v", p)
				}
			}
			if policies[static] == nil || cmp.Diff(except(), policies[static].Rules) != "" {
				t.Errorf("static policy %+v", policies[static])
			}
			var rules []mesh.Rule
			if p := policies[converted]; p != nil {
				rules = p.Rules
			}
			if diff := cmp.Diff(tc.rules, rules); diff != "" {
				t.Error(diff)
			}
			for _, name := range s.Workloads[0].AuthorizationPolicies {
				if policies[name] == nil {
					t.Errorf("%s is named, but not there", name)
				}
			}
		})
	}
}

func TestPeerAuthenticationConditions(t *testing.T) {
	var objs []source.Object
	for _, o := range []string{
		"istio-system/mesh 02 STRICT", "istio-system/young 03 PERMISSIVE", "istio-system/selecting 01 STRICT app=cart",
		"shop/off 01 DISABLE", "shop/port 01 STRICT app=cart 80=DISABLE", "shop/sound 01 STRICT app=web",
	} {
		objs = append(objs, peerAuthentication(t, o))
	}
	s := Compile(objectsOf(objs...), Settings{})
	var got []string
	for _, c := range s.Conditions {
		got = append(got, fmt.Sprintf("%s %v %s %s: %s", c.Object.ID(), c.Accepted, c.Reason, c.Field, c.Message))
	}
	want := []string{
		"istio-system/mesh true Accepted : Served to ztunnel as written.",
		"istio-system/selecting false UnsupportedValue spec.selector: A selector in the root namespace selects nothing in ambient mode: the policy is inert.",
		"istio-system/young false Conflict spec: PeerAuthentication istio-system/mesh covers the same workloads and is older: this one is inert.",
		"shop/off true UnsupportedValue spec: DISABLE acts as PERMISSIVE: plaintext is accepted, and so is HBONE.",
		"shop/port true UnsupportedValue spec: DISABLE acts as PERMISSIVE: plaintext is accepted, and so is HBONE.",
		"shop/sound true Accepted : Served to ztunnel as written.",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := len(s.Problems); n != 4 {
		t.Errorf("%d problems: %v", n, s.Problems)
	}
}

// Which workloads name which policies with a selector.
func TestWorkloadsNameTheirPolicies(t *testing.T) {
	policy := func(namespace, name, labels string) source.Object {
		return authorizationPolicy(t, "metadata: {name: "+name+", namespace: "+namespace+"}\nspec: {rules: [{}], selector: {matchLabels: {"+labels+"}}}")
	}
	labelled := func(namespace, name, version string) source.Object {
		return pod(namespace, name, "n", fmt.Sprintf("10.0.%d.%d", len(namespace), len(name)), func(p *corev1.Pod) { p.Labels["version"] = version })
	}
	s := Compile(objectsOf(
		labelled("shop", "cart", "v1"), labelled("shop", "web", "v2"), labelled("other", "cart", "v2"), labelled("istio-system", "gateway", "v2"),
		policy("shop", "cart", "app: cart"), policy("shop", "cart-v2", "app: cart, version: v2"), policy("shop", "a-v1", "version: v1"),
		policy("istio-system", "everywhere", "version: v2"), policy("istio-system", "cart", "app: cart"),
		authorizationPolicy(t, "metadata: {name: all, namespace: shop}"), authorizationPolicy(t, "metadata: {name: all, namespace: istio-system}"),
		peerAuthentication(t, "shop/n 01 STRICT"),
	), Settings{})
	got := map[string]string{}
	for _, w := range s.Workloads {
		got[w.Namespace+"/"+w.Name] = strings.Join(w.AuthorizationPolicies, " ")
		if !slices.IsSorted(w.AuthorizationPolicies) {
			t.Errorf("%s is not sorted", w.Name)
		}
	}
	want := map[string]string{
		"shop/cart":            "istio-system/cart istio-system/istio_converted_static_strict shop/a-v1 shop/cart",
		"shop/web":             "istio-system/everywhere istio-system/istio_converted_static_strict",
		"other/cart":           "istio-system/cart istio-system/everywhere",
		"istio-system/gateway": "istio-system/everywhere",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
