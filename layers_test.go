// SPDX-License-Identifier: Apache-2.0

package ambientlab

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/ambientlab/ambientlab/"

// A level is a set of siblings. A package may import the levels above its own and nothing beside it.
// These tables are policy: change them first, on purpose, then the code.
type level struct {
	packages []string // paths under the module; sub-packages belong to the one they stand in
	why      string
}

var levels = []level{
	{[]string{"dataplane/mesh"}, "nouns: everyone reads them, so they read nobody"},
	{[]string{
		"dataplane/identity", "dataplane/hbone", "dataplane/netns", "dataplane/capture", "dataplane/relay", "dataplane/dns",
		"dataplane/authz", "dataplane/l7", "dataplane/catalog", "dataplane/xds", "dataplane/zds", "dataplane/telemetry",
		"dataplane/admin", "dataplane/source",
	}, "mechanisms that do not know each other"},
	{[]string{"dataplane/control", "dataplane/ztunnel", "dataplane/waypoint", "dataplane/sidecar", "dataplane/cni"},
		"daemons meet only on the wire"},
	{[]string{"dataplane/cmd"}, "one small main per daemon; back ends are chosen here"},
	{[]string{"topologies/workload", "topologies/wire", "topologies/nodenet", "topologies"},
		"what a lab is made of; the data plane knows nothing of labs"},
	{[]string{"kindconfigs"}, "what a cluster is made of and what is installed in it: data and pure functions, which drivers apply"},
	{[]string{"topologies/lab"}, "the seam between scenarios and drivers"},
	{[]string{"topologies/driver"}, "three ways to realise one Spec"},
	{[]string{"reports/schema"}, "result documents, written by many and read by many"},
	{[]string{"reports/compare", "reports/render"}, "pure functions of result documents"},
	{[]string{"scenarios", "perf", "topologies/cmd", "reports/cmd"}, "what people run"},
}

// siblings lists the imports within a level that are allowed, and why.
var siblings = map[[2]string]string{
	{"dataplane/capture", "dataplane/netns"}: "rules are applied inside a pod's namespace",
	{"dataplane/zds", "dataplane/netns"}:     "the message carries a namespace descriptor",
	{"dataplane/catalog", "dataplane/authz"}: "policies are indexed once, with the snapshot that holds them",
	{"dataplane/hbone", "dataplane/relay"}:   "a tunnel ends with the same result and errors as a plain copy",
}

// stdOnly are packages that import the standard library and this module alone.
var stdOnly = []string{"dataplane/mesh", "dataplane/relay", "dataplane/authz", "dataplane/l7", "reports/schema"}

// doors lists who may import a heavy dependency.
var doors = []struct {
	dependency string
	through    []string
}{
	{"k8s.io/client-go", []string{"dataplane/source/kube", "dataplane/control", "topologies/driver/kube"}},
	{"sigs.k8s.io/e2e-framework", []string{"topologies/driver/kind", "topologies/driver/kube"}},
	{"google.golang.org/grpc", []string{"dataplane/xds", "dataplane/identity", "dataplane/control", "topologies/workload"}},
	{"google.golang.org/protobuf", []string{
		"dataplane/xds", "dataplane/identity", "dataplane/control", "dataplane/zds",
		"dataplane/source/file", // Istio's objects are protobuf messages: a strict decode asks for their fields
	}},
	{"github.com/envoyproxy", []string{"dataplane/control"}},
	{"github.com/google/nftables", []string{"dataplane/capture", "topologies/nodenet", "topologies/driver/netns", "topologies/workload"}},
	{"github.com/vishvananda/netlink", []string{"dataplane/netns", "dataplane/capture", "topologies/nodenet", "topologies/driver/netns"}},
	{"github.com/containernetworking/cni/libcni", []string{"topologies/driver/netns"}},
	{"github.com/containernetworking/cni/pkg/skel", []string{"dataplane/cni", "dataplane/cmd/ambient-cni", "kindconfigs/nodeimage/nodad", "kindconfigs/nodeimage/plainpackets"}},
	{"github.com/cilium/ebpf", []string{"dataplane/capture"}},
	{"github.com/prometheus/client_golang", []string{"dataplane/telemetry"}},
	{"github.com/gopacket", []string{"topologies/wire", "topologies/cmd/capture"}},
	{"fortio.org", []string{"perf/fortiorun"}},
	{"github.com/onsi", []string{"scenarios"}},
	{"github.com/google/go-containerregistry", []string{"kindconfigs/image"}},
	{"golang.org/x/crypto/ssh", []string{"topologies/workload/session"}},
	{"github.com/spf13/cobra", []string{"topologies/cmd/lab"}},
}

// lean lists what a proxy must not even link, directly or not: every pod of a node shares its footprint.
var lean = []string{"k8s.io/", "sigs.k8s.io/", "github.com/envoyproxy/", "istio.io/client-go", "github.com/onsi/"}

func within(pkg, prefix string) bool { return pkg == prefix || strings.HasPrefix(pkg, prefix+"/") }

// place finds the level and the longest entry that pkg belongs to.
func place(pkg string) (lvl int, entry string) {
	lvl = -1
	for i, l := range levels {
		for _, p := range l.packages {
			if within(pkg, p) && len(p) > len(entry) {
				lvl, entry = i, p
			}
		}
	}
	return lvl, entry
}

// goDirs lists every directory of the module that holds Go files.
func goDirs(t *testing.T) map[string][]string {
	t.Helper()
	dirs := map[string][]string{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || nestedModule(p)) {
			return fs.SkipDir
		}
		if strings.HasSuffix(p, ".go") {
			dirs[filepath.Dir(p)] = append(dirs[filepath.Dir(p)], p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

func nestedModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

func parse(t *testing.T, file string, mode parser.Mode) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, mode)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestImportsFollowTheLayers(t *testing.T) {
	for dir, files := range goDirs(t) {
		if dir == "." {
			continue
		}
		if lvl, _ := place(dir); lvl < 0 {
			t.Errorf("%s is in no level: give it a place in layers_test.go, or move its code to a package that has one", dir)
			continue
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, imp := range parse(t, file, parser.ImportsOnly).Imports {
				target, _ := strconv.Unquote(imp.Path.Value)
				checkImport(t, dir, file, target)
			}
		}
	}
}

func checkImport(t *testing.T, dir, file, target string) {
	t.Helper()
	if ours, ok := strings.CutPrefix(target, module); ok {
		checkLevel(t, dir, file, ours)
		return
	}
	if !strings.Contains(strings.Split(target, "/")[0], ".") {
		return // standard library
	}
	for _, p := range stdOnly {
		if within(dir, p) {
			t.Errorf("%s: %s may import the standard library only, not %s", file, p, target)
		}
	}
	for _, d := range doors {
		if within(target, d.dependency) && !anyWithin(dir, d.through) {
			t.Errorf("%s: %s is a heavy dependency, imported only by %s", file, d.dependency, strings.Join(d.through, ", "))
		}
	}
}

func anyWithin(pkg string, prefixes []string) bool {
	for _, p := range prefixes {
		if within(pkg, p) {
			return true
		}
	}
	return false
}

func checkLevel(t *testing.T, dir, file, target string) {
	t.Helper()
	from, fromEntry := place(dir)
	to, toEntry := place(target)
	switch {
	case fromEntry == toEntry:
	case to < 0:
		t.Errorf("%s: imports %s, which is in no level", file, target)
	case to < from:
	case to == from && siblings[[2]string{fromEntry, toEntry}] != "":
	case to == from:
		t.Errorf("%s: %s and %s are siblings (%s): neither may import the other", file, fromEntry, toEntry, levels[from].why)
	default:
		t.Errorf("%s: %s (%s) may not import %s (%s)", file, fromEntry, levels[from].why, toEntry, levels[to].why)
	}
}

func TestProxiesStayLean(t *testing.T) {
	for _, cmd := range []string{"ztunnel", "waypoint", "sidecar", "ambient-cni"} {
		dir := path.Join("dataplane/cmd", cmd)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		banned := lean
		if cmd == "ambient-cni" {
			banned = []string{"k8s.io/client-go", "github.com/envoyproxy/"}
		}
		out, err := exec.Command("go", "list", "-deps", "./"+dir).CombinedOutput()
		if err != nil {
			t.Fatalf("go list -deps ./%s: %v\n%s", dir, err, out)
		}
		for _, dep := range strings.Fields(string(out)) {
			for _, b := range banned {
				if strings.HasPrefix(dep, b) {
					t.Errorf("%s links %s: a proxy must stay lean", dir, dep)
				}
			}
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	for dir, files := range goDirs(t) {
		var comments, sources int
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			sources++
			if parse(t, file, parser.PackageClauseOnly|parser.ParseComments).Doc != nil {
				comments++
			}
		}
		if sources > 0 && comments != 1 {
			t.Errorf("%s has %d package comments, want exactly 1", dir, comments)
		}
	}
}

func TestEveryFileNamesTheLicence(t *testing.T) {
	for _, files := range goDirs(t) {
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			head := string(b[:min(len(b), 400)])
			if !strings.Contains(head, "SPDX-License-Identifier: Apache-2.0") {
				t.Errorf("%s: the first line must be // SPDX-License-Identifier: Apache-2.0", file)
			}
		}
	}
}
