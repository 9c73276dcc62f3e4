// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

const podCart = `apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: u1, annotations: {a: base, keep: "1"}}
spec:
  nodeName: node1
  containers: [{name: app, ports: [{containerPort: 8080}]}]
`

// write replaces a file atomically, as producers do.
func write(t *testing.T, dir, rel, text string) {
	t.Helper()
	path := filepath.Join(dir, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func TestReadReportsFileAndField(t *testing.T) {
	for _, tc := range []struct {
		name, file, text string
		want             []string
	}{
		{"unknown field", "a.yaml", strings.Replace(podCart, "nodeName", "nodename", 1), []string{"a.yaml: Pod shop/cart: spec.nodename: unknown field"}},
		{"wrong type", "a.yaml", strings.Replace(podCart, "8080", "eighty", 1), []string{"a.yaml: Pod shop/cart: spec.containers.ports.containerPort: cannot be a string, wants int32"}},
		{"bad value", "a.yaml", strings.Replace(podCart, "8080", "80800", 1), []string{"a.yaml: Pod shop/cart: spec.containers[0].ports[0].containerPort: 80800 is not a port (1 to 65535)"}},
		{"syntax", "a.yaml", "# one\n---\nkind: [Pod\n", []string{"a.yaml: read YAML: yaml: line 3: did not find expected ',' or ']'"}},
		{"duplicate key", "a.yaml", "kind: Pod\nkind: Pod\n", []string{`a.yaml: read YAML: yaml: unmarshal errors:` + "\n" + `  line 2: key "kind" already set in map`}},
		{"no kind", "a.yaml", "metadata: {name: x}\n", []string{"a.yaml: kind: is missing"}},
		{"other kind", "a.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x, namespace: ns}\n", []string{`a.yaml: Deployment ns/x: kind: objects of kind "Deployment" are not read`}},
		{"other version", "a.yaml", "apiVersion: v2\nkind: Pod\nmetadata: {name: x, namespace: ns}\n", []string{`a.yaml: Pod ns/x: apiVersion: "v2" is not a version of Pod that is read (v1)`}},
		{"no namespace", "a.yaml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: X}\n", []string{
			`a.yaml: ServiceAccount X: metadata.name: "X" is not a lower case RFC 1123 name`, `a.yaml: ServiceAccount X: metadata.namespace: is missing`,
		}},
		{"namespace where none belongs", "a.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: x, namespace: ns}\n", []string{`a.yaml: Node ns/x: metadata.namespace: this kind has no namespace`}},
		{"istio unknown field", "a.yaml", "apiVersion: networking.istio.io/v1beta1\nkind: ServiceEntry\nmetadata: {name: x, namespace: ns}\nspec: {hosts: [a.b], ports: [{nmber: 3}]}\n", []string{`a.yaml: ServiceEntry ns/x: spec.ports[0].nmber: unknown field`}},
		{"istio enum and type", "a.yaml", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x, namespace: ns}\nspec: {hosts: a.b, resolution: FIXED}\n", []string{
			`a.yaml: ServiceEntry ns/x: spec.hosts: cannot be a string, wants a list`,
			`a.yaml: ServiceEntry ns/x: spec.resolution: "FIXED" is not one of NONE, STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS`,
		}},
		{"istio value", "a.yaml", "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: x, namespace: ns}\nspec: {address: 'unix:/a', ports: {http: 0}}\n", []string{
			`a.yaml: WorkloadEntry ns/x: spec.address: a Unix socket cannot be reached through the mesh`,
			`a.yaml: WorkloadEntry ns/x: spec.ports[http]: 0 is not a port (1 to 65535)`,
		}},
		{"twice in a file", "a.yaml", podCart + "---\n" + podCart, []string{"a.yaml: Pod shop/cart: is in this file twice, the first one wins"}},
		{"spec in a status file", "status/kubelet/a.yaml", podCart, []string{"status/kubelet/a.yaml: Pod shop/cart: spec: a file under status/ may hold only annotations and a status"}},
		{"nothing at all", "a.yaml", "# empty\n---\n---\n", nil},
		{"not ours", "a.txt", "kind: [", nil},
		{"hidden", ".a.yaml", "kind: [", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, tc.file, tc.text)
			_, problems, err := Read(dir)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, texts(problems)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadMergesStatusFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pod.yaml", podCart)
	write(t, dir, "status/kubelet/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop}\nspec: {containers: null}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n")
	write(t, dir, "status/cni-agent.node1/pod.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"cart","namespace":"shop","annotations":{"ambient.istio.io/redirection":"enabled","a":"agent"}},"status":{}}`)
	write(t, dir, "status/gone/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop, uid: u0}\nstatus: {phase: Failed}\n")
	write(t, dir, "status/gone/other.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: shop}\nstatus: {phase: Failed}\n")
	o, problems, err := Read(dir)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	if o.Len() != 1 {
		t.Fatalf("%d objects, want the pod alone", o.Len())
	}
	p := o.Pods["shop/cart"]
	want := map[string]string{"a": "agent", "keep": "1", "ambient.istio.io/redirection": "enabled"}
	if diff := cmp.Diff(want, p.Annotations); diff != "" {
		t.Error(diff)
	}
	if p.Status.Phase != "Running" || len(p.Status.PodIPs) != 1 || p.Spec.NodeName != "node1" {
		t.Errorf("merged pod: %+v %+v", p.Spec, p.Status)
	}
}

// A policy that is edited badly stays enforced as it was, and what control says of it is read back.
func TestPolicyKeepsItsLastGoodVersionAndItsStatus(t *testing.T) {
	policy := func(field string) string {
		return "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {action: DENY, rules: [{from: [{source: {" + field + "}}]}]}\n"
	}
	tr := newTree(t.TempDir())
	write(t, tr.root, "p.yaml", policy("namespaces: [web]"))
	write(t, tr.root, "status/control/p.yaml", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"+
		"status: {conditions: [{type: ZtunnelAccepted, status: 'True', observedGeneration: '3'}]}\n")
	o := rescan(t, tr, nil)
	write(t, tr.root, "p.yaml", policy("namespace: [web]"))
	o = rescan(t, tr, o)
	p := o.AuthorizationPolicies["shop/p"]
	if p == nil || p.Spec.GetRules()[0].GetFrom()[0].GetSource().GetNamespaces()[0] != "web" {
		t.Fatalf("policy %v", p)
	}
	if c := p.Status.GetConditions(); len(c) != 1 || c[0].GetObservedGeneration() != 3 {
		t.Errorf("conditions %v", c)
	}
	want := []string{"p.yaml: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.namespace: unknown field"}
	if diff := cmp.Diff(want, texts(tr.problems())); diff != "" {
		t.Error(diff)
	}
}

func TestReadSameObjectInTwoFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", podCart)
	write(t, dir, "b.yaml", strings.Replace(podCart, "node1", "node2", 1))
	o, problems, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"b.yaml: Pod shop/cart: a.yaml has this object already, and wins"}, texts(problems)); diff != "" {
		t.Error(diff)
	}
	if n := o.Pods["shop/cart"].Spec.NodeName; n != "node1" {
		t.Errorf("node %q", n)
	}
}

func TestReadMissingDirectory(t *testing.T) {
	if _, _, err := Read(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error")
	}
}

func texts(problems []source.Problem) []string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Error())
	}
	return out
}

// start runs a source until the test ends.
func start(t *testing.T, dir string, prepare ...func(*Source)) *Source {
	t.Helper()
	s := New(dir, nil)
	for _, p := range prepare {
		p(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatalf("run: %v", err)
	}
	return s
}

// eventually waits for a snapshot that ok likes.
func eventually(t *testing.T, s *Source, what string, ok func(*source.Objects) bool) *source.Objects {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		changed := s.Changed()
		if o := s.Load(); ok(o) {
			return o
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%s: not within 10 s; problems %v", what, texts(s.Problems()))
		}
	}
}

func TestWatch(t *testing.T) {
	t.Run("by events", func(t *testing.T) { follow(t, func(*Source) {}) })
	t.Run("by looking, where a user has no watcher left", func(t *testing.T) {
		follow(t, func(s *Source) { s.watcher = func() (*fsnotify.Watcher, error) { return nil, syscall.EMFILE } })
	})
}

func follow(t *testing.T, prepare func(*Source)) {
	dir := t.TempDir()
	write(t, dir, "pod.yaml", podCart)
	s := start(t, dir, prepare)
	first := s.Load()
	if first.Pods["shop/cart"] == nil {
		t.Fatal("ready without the pod")
	}

	write(t, dir, "more/deep/sa.yaml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: cart, namespace: shop}\n")
	o := eventually(t, s, "a file in new directories", func(o *source.Objects) bool { return o.ServiceAccounts["shop/cart"] != nil })
	if o.Pods["shop/cart"] != first.Pods["shop/cart"] {
		t.Error("an untouched pod is not the same object any more")
	}
	if len(first.ServiceAccounts) != 0 {
		t.Error("an old snapshot changed")
	}

	write(t, dir, "status/kubelet/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop}\nstatus: {phase: Running}\n")
	eventually(t, s, "a status", func(o *source.Objects) bool { return o.Pods["shop/cart"].Status.Phase == "Running" })

	// In place, same size, at once.
	for _, phase := range []string{"Pending", "Running", "Unknown", "Pending"} {
		text := "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop}\nstatus: {phase: " + phase + "}\n"
		if err := os.WriteFile(filepath.Join(dir, "status/kubelet/pod.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, s, phase, func(o *source.Objects) bool { return string(o.Pods["shop/cart"].Status.Phase) == phase })
	}

	if err := os.Rename(filepath.Join(dir, "more"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "moved/deep/sb.yaml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: shop}\n")
	eventually(t, s, "a moved directory", func(o *source.Objects) bool { return len(o.ServiceAccounts) == 2 })

	if err := os.RemoveAll(filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	eventually(t, s, "a removed directory", func(o *source.Objects) bool { return len(o.ServiceAccounts) == 0 })

	if err := os.Remove(filepath.Join(dir, "pod.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, s, "a removed file", func(o *source.Objects) bool { return o.Len() == 0 })
}

// Design, decision 4: a bad object keeps its own last good version, all others apply.
func TestBadObjectKeepsItsLastGoodVersion(t *testing.T) {
	sa := func(name, extra string) string {
		return "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: " + name + ", namespace: shop" + extra + "}\n"
	}
	bad := func(name string) string { return sa(name, ", lables: {}") }
	for _, tc := range []struct {
		name, next string
		want       string // v of a, b and c
		problems   int
	}{
		{"one bad field", sa("a", ", labels: {v: '2'}") + "---\n" + bad("b"), "2 1 -", 1},
		{"all bad, one new", bad("a") + "---\n" + bad("b") + "---\n" + sa("c", ", labels: {v: '2'}"), "1 1 2", 2},
		{"unreadable", "{{{", "1 1 -", 1},
		{"unreadable part", sa("a", ", labels: {v: '2'}") + "---\n}", "2 1 -", 1},
		{"wrong version", sa("a", ", labels: {v: '2'}") + "---\n" + strings.Replace(sa("b", ""), "v1", "v9", 1), "2 1 -", 1},
		{"gone", sa("c", ", labels: {v: '2'}"), "- - 2", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := newTree(t.TempDir())
			write(t, tr.root, "f.yaml", sa("a", ", labels: {v: '1'}")+"---\n"+sa("b", ", labels: {v: '1'}"))
			o := rescan(t, tr, nil)
			write(t, tr.root, "f.yaml", tc.next)
			o = rescan(t, tr, o)
			var got []string
			for _, n := range []string{"a", "b", "c"} {
				v := "-"
				if s := o.ServiceAccounts["shop/"+n]; s != nil {
					v = s.Labels["v"]
				}
				got = append(got, v)
			}
			if g := strings.Join(got, " "); g != tc.want {
				t.Errorf("versions %q, want %q", g, tc.want)
			}
			if p := tr.problems(); len(p) != tc.problems {
				t.Errorf("problems %q, want %d", texts(p), tc.problems)
			}
			write(t, tr.root, "f.yaml", sa("a", "")+"---\n"+sa("b", ""))
			o = rescan(t, tr, o)
			if p := tr.problems(); len(p) != 0 || o.Len() != 2 {
				t.Errorf("after the cure: %d objects, problems %q", o.Len(), texts(p))
			}
		})
	}
}

func rescan(t *testing.T, tr *tree, o *source.Objects) *source.Objects {
	t.Helper()
	if _, err := tr.rescan(nil); err != nil {
		t.Fatal(err)
	}
	return o.With(tr.changes())
}

func TestRewritingTheSameChangesNothing(t *testing.T) {
	tr := newTree(t.TempDir())
	write(t, tr.root, "f.yaml", podCart)
	rescan(t, tr, nil)
	write(t, tr.root, "f.yaml", podCart+"\n# a comment\n")
	if _, err := tr.rescan(nil); err != nil {
		t.Fatal(err)
	}
	if c := tr.changes(); len(c) != 0 {
		t.Errorf("changes %v", c)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(podCart)
	f.Add("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, namespace: b}\nspec: {hosts: [a.b], endpoints: [{address: 1.2.3.4, ports: {a: 1}}]}\n---\n{}")
	f.Add("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\nspec: {rules: [{when: [{key: source.ip, values: [1.2.3.4]}], to: [{operation: {ports: ['1']}}]}]}")
	f.Add("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: b}\nspec: {selector: {matchLabels: {a: b}}, portLevelMtls: {1: {mode: STRICT}}}")
	f.Add("{\"kind\": \"Pod\", \"apiVersion\": \"v1\"}")
	f.Fuzz(func(t *testing.T, text string) {
		first := &entry{}
		parse(first, "f.yaml", []byte(text), nil)
		again := &entry{}
		parse(again, "f.yaml", []byte(text), first)
		if len(again.docs) != len(first.docs) {
			t.Errorf("%d documents, then %d", len(first.docs), len(again.docs))
		}
		for i := range first.docs {
			if again.docs[i].obj != first.docs[i].obj {
				t.Errorf("%s is not the same object after reading the same bytes", first.docs[i].key)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	for _, n := range []int{100, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			for i := range n {
				text := strings.ReplaceAll(podCart, "cart", fmt.Sprintf("cart-%d", i))
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("pod.shop.cart-%d.yaml", i)), []byte(text), 0o600); err != nil {
					b.Fatal(err)
				}
			}
			tr := newTree(dir)
			b.Run("first", func(b *testing.B) {
				for b.Loop() {
					tr = newTree(dir)
					if _, err := tr.rescan(nil); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("again", func(b *testing.B) {
				for b.Loop() {
					if _, err := tr.rescan(nil); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
