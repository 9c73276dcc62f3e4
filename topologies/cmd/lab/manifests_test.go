// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// printed are the objects of what was printed, by "kind namespace/name".
func printed(t *testing.T, out string) map[string]map[string]any {
	t.Helper()
	objs := map[string]map[string]any{}
	for doc := range strings.SplitSeq(out, "\n---\n") {
		var o map[string]any
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		add(objs, o)
	}
	return objs
}

func add(objs map[string]map[string]any, o map[string]any) {
	m := o["metadata"].(map[string]any)
	ns, _ := m["namespace"].(string)
	objs[o["kind"].(string)+" "+ns+"/"+m["name"].(string)] = o
}

func TestManifests(t *testing.T) {
	code, out, errOut := runLab(t, "manifests", "--image", "mesh:v1", "--cluster-id", "east", "--network", "net1", "--trust-domain", "mesh.example")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	objs := printed(t, out)
	for _, want := range []string{
		"Namespace /istio-system", "DaemonSet istio-system/ztunnel", "DaemonSet istio-system/istio-cni-node", "Deployment istio-system/istiod",
		"CustomResourceDefinition /authorizationpolicies.security.istio.io", "CustomResourceDefinition /gateways.gateway.networking.k8s.io",
	} {
		if objs[want] == nil {
			t.Errorf("no %s", want)
		}
	}
	for _, want := range []string{"image: mesh:v1", "- east", "value: net1", "- mesh.example"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in what is printed", want)
		}
	}
	_, bare, _ := runLab(t, "manifests", "--image", "mesh:v1", "--no-crds", "-o", "json")
	var list struct{ Items []map[string]any }
	if err := json.Unmarshal([]byte(bare), &list); err != nil {
		t.Fatal(err)
	}
	fewer := map[string]map[string]any{}
	for _, o := range list.Items {
		add(fewer, o)
	}
	want := slices.DeleteFunc(slices.Sorted(maps.Keys(objs)), func(id string) bool { return strings.HasPrefix(id, "CustomResourceDefinition") })
	if got := slices.Sorted(maps.Keys(fewer)); !slices.Equal(got, want) {
		t.Errorf("--no-crds: %v, want %v", got, want)
	}
}

func TestManifestsOfATopology(t *testing.T) {
	code, out, errOut := runLab(t, "manifests", "dual-stack", "--image", "mesh:v1", "--no-crds")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	objs := printed(t, out)
	if n := strings.Count(out, "\n---\n") + 1; n != len(objs) {
		t.Errorf("%d documents of %d objects: some are there twice", n, len(objs))
	}
	for _, unwanted := range []string{"Node /node1", "Namespace /default", "Service default/kubernetes", "Pod istio-system/istiod", "Pod istio-system/ztunnel-node1"} {
		if objs[unwanted] != nil {
			t.Errorf("%s: the cluster has it, or a DaemonSet makes it", unwanted)
		}
	}
	pod := objs["Pod shop/web"]["spec"].(map[string]any)
	if pod["nodeName"] != nil || pod["containers"].([]any)[0].(map[string]any)["image"] != "mesh:v1" {
		t.Errorf("pod of %v", pod)
	}
	service := objs["Service shop/cart"]["spec"].(map[string]any)
	if service["clusterIP"] != nil || service["ipFamilyPolicy"] != "PreferDualStack" {
		t.Errorf("service of %v", service)
	}
	if six := objs["Service shop/cart-v6"]["spec"].(map[string]any); six["ipFamilyPolicy"] != "SingleStack" || six["ipFamilies"].([]any)[0] != "IPv6" {
		t.Errorf("service of %v", six)
	}
}

func TestManifestsNameTheImageOfThePrograms(t *testing.T) {
	t.Setenv("AMBIENTLAB_BIN", t.TempDir())
	for _, args := range []string{"manifests", "image"} {
		if code, _, errOut := runLab(t, args); code != 1 || !strings.Contains(errOut, "ztunnel") || !strings.Contains(errOut, "make build") {
			t.Errorf("%s: exit %d: %s", args, code, errOut)
		}
	}
}

func TestManifestsOfManyClusters(t *testing.T) {
	file := filepath.Join(t.TempDir(), "two.yaml")
	const two = "apiVersion: ambientlab.dev/v1alpha1\nkind: Topology\nname: two\nclusters:\n- {name: east, nodes: [{name: a}]}\n- {name: west, nodes: [{name: b}]}\n"
	if err := os.WriteFile(file, []byte(two), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{"": "want one of east, west", "--cluster south": "want one of east, west", "--cluster west": "- west"} {
		_, out, errOut := runLab(t, append([]string{"manifests", file, "--image", "x", "--no-crds"}, strings.Fields(args)...)...)
		if !strings.Contains(out+errOut, want) {
			t.Errorf("%q: no %q in %s", args, want, errOut)
		}
	}
}
