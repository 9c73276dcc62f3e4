// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

const object = "# a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: network}\n"

func manifestFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "net.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestReadCNI(t *testing.T) {
	file := manifestFile(t, object)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/net.yaml" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(object))
	}))
	defer server.Close()
	for _, c := range []struct {
		from   string
		policy bool
		want   installed
	}{
		{"", false, installed{}},
		{"kindnet", false, installed{}},
		{file, false, installed{Name: "net.yaml"}},
		{file, true, installed{Name: "net.yaml", NetworkPolicy: true}},
		{server.URL + "/net.yaml?raw=true", false, installed{Name: "net.yaml"}},
		{"flannel=" + file, false, installed{Name: "flannel"}},
		{"calico=" + server.URL + "/net.yaml", false, installed{Name: "calico", NetworkPolicy: true}},
		{"cilium=" + file, false, installed{Name: "cilium", NetworkPolicy: true}},
	} {
		got, err := ReadCNI(t.Context(), c.from, c.policy)
		if err != nil {
			t.Errorf("%s: %v", c.from, err)
			continue
		}
		if c.want.asked() {
			c.want.Manifest = got.Manifest
			if len(got.Manifest) != 64 || string(got.manifest) != object {
				t.Errorf("%s: %q of digest %s", c.from, got.manifest, got.Manifest)
			}
		}
		if got.installed != c.want {
			t.Errorf("%s: got %+v, want %+v", c.from, got.installed, c.want)
		}
	}
	for _, c := range []struct {
		from   string
		policy bool
		want   []string
	}{
		{"", true, []string{"with --cni FILE"}},
		{"flanel", false, []string{"CNI flanel: ", "no file flanel", "kindnet, flannel, calico, cilium"}},
		{"calico=/none.yaml", false, []string{"no file /none.yaml"}},
		{"cilium", false, []string{"a chart", "`helm template cilium", "--set cni.exclusive=false --set socketLB.hostNamespaceOnly=true > cilium.yaml`", "--cni cilium=cilium.yaml"}},
		{"cilium", true, []string{"a chart", "leave --cni-network-policy out"}},
		{"aws-vpc", false, []string{"EC2", "--cni FILE"}},
		{"aws-vpc=" + file, false, []string{"EC2"}},
		{"kindnet=" + file, true, []string{"leave =FILE out", "is known (true)"}},
		{server.URL + "/other.yaml", false, []string{"404 Not Found", "NAME=FILE"}},
		{manifestFile(t, ""), false, []string{"no Kubernetes objects"}},
		{manifestFile(t, "<html>\n<body>: it: is</body>"), false, []string{"document 1 is no Kubernetes object", "a page about the manifest"}},
		{manifestFile(t, object+"---\nkind: X\n---\n- {{ .PodSubnet }}\n"), false, []string{"template of kind", "{{ .PodSubnet }}", "document 3"}},
		{manifestFile(t, object+"---\nkind: X\n"), false, []string{"document 3 has no kind or no apiVersion"}},
	} {
		_, err := ReadCNI(t.Context(), c.from, c.policy)
		if err == nil {
			t.Errorf("%s was taken", c.from)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %q in: %v", c.from, want, err)
			}
		}
	}
}

// The offline node image's own manifest is good for a trial once it has what kind fills in.
func TestReadCNIOfTheNodeImage(t *testing.T) {
	text, err := os.ReadFile("../../../kindconfigs/nodeimage/files/default-cni.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCNI(t.Context(), manifestFile(t, string(text)), true); err == nil || !strings.Contains(err.Error(), "a template of kind") {
		t.Errorf("as it is: %v", err)
	}
	filled := kindTemplate.ReplaceAllString(string(text), "10.244.0.0/16")
	if _, err := ReadCNI(t.Context(), manifestFile(t, filled), true); err != nil {
		t.Error(err)
	}
}

// What the project's own manifest is for, a manifest of one's own may not be.
func TestAManifestOfOnesOwnFitsAnyTopology(t *testing.T) {
	c, err := ReadCNI(t.Context(), "flannel="+manifestFile(t, object), false)
	if err != nil {
		t.Fatal(err)
	}
	six := &topologies.Cluster{IPFamily: topologies.IPv6}
	if err := c.fits(six); err != nil {
		t.Error(err)
	}
	theirs, _, err := choose("flannel", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := theirs.fits(six); err == nil || !errors.Is(err, lab.ErrUnsupported) || !strings.Contains(err.Error(), "ipFamily ipv6") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"bridge"}, c.project.Plugins); diff != "" { // whichever manifest it is
		t.Error(diff)
	}
}

// With flannel nodes would be Ready without the plugin, and pods never.
func TestNodeImagesNeedAProjectsPlugins(t *testing.T) {
	c, _, err := choose("flannel", false)
	if err != nil {
		t.Fatal(err)
	}
	err = playing(t, `echo "loopback ptp"`).plugins(t.Context(), "some/node", c)
	for _, want := range []string{"CNI flannel", "some/node", "no CNI plugin bridge", "--node-image"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
	if err := playing(t, `echo "bridge loopback"`).plugins(t.Context(), "some/node", c); err != nil {
		t.Error(err)
	}
	if err := playing(t, "exit 1").plugins(t.Context(), "some/node", CNI{}); err != nil { // nobody is asked
		t.Error(err)
	}
}

func TestConfigOfACNI(t *testing.T) {
	for _, s := range []shape{{Nodes: 1}, {Nodes: 1, CNI: installed{Name: "flannel"}}} {
		text, err := s.config("/mount", 20000)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(text), "disableDefaultCNI: true\n"); got != s.CNI.asked() {
			t.Errorf("%s:\n%s", s.said(), text)
		}
	}
}

// A cluster with another CNI is no cluster for a lab, neither in this process nor in a later one.
func TestClustersDifferByTheirCNI(t *testing.T) {
	calico := installed{Name: "calico", Manifest: "1", NetworkPolicy: true}
	kinds := []installed{{}, calico, {Name: "calico", Manifest: "2", NetworkPolicy: true}, {Name: "calico", Manifest: "1"}, {Name: "mine", Manifest: "1", NetworkPolicy: true}}
	t.Setenv("AMBIENTLAB_DIR", t.TempDir())
	for i, has := range kinds {
		var p Pool
		c := spareOf(1, topologies.Dual)
		c.CNI = has
		p.give(c)
		r := recorded(t, "kept", about{Kept: true, Nodenet: true, Shape: c.shape})
		if err := os.MkdirAll(r.mount(), 0o700); err != nil {
			t.Fatal(err)
		}
		for j, want := range kinds {
			if i == j {
				continue
			}
			s := shape{Nodes: 1, IPFamily: topologies.Dual, CNI: want}
			if p.take(s, "") != nil {
				t.Errorf("a cluster with %+v was taken for %+v", has, want)
			}
			if c, err := adopt(t.Context(), playing(t, "echo ambientlab-kept-control-plane"), s, ""); c != nil || err != nil {
				t.Errorf("a kept cluster with %+v was adopted for %+v, %v", has, want, err)
			}
		}
		if p.take(c.shape, "") == nil {
			t.Errorf("the cluster with %+v was not taken", has)
		}
		kept, err := adopt(t.Context(), playing(t, "echo ambientlab-kept-control-plane"), c.shape, "")
		if err != nil || kept == nil {
			t.Fatalf("the kept cluster with %+v was not adopted: %v", has, err)
		}
		kept.lock.Close()
		if kept.CNI != has || kept.enforces() != (!has.asked() || has.NetworkPolicy) || kept.ownPodNetwork() == has.asked() {
			t.Errorf("adopted %+v: enforces %v, our own pod network %v", kept.CNI, kept.enforces(), kept.ownPodNetwork())
		}
	}
}
