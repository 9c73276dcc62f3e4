// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestLocalSaysEverythingTheWireDoes(t *testing.T) {
	data, err := os.ReadFile("testdata/local.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	items := 0
	if ok, err := splitLocal(bytes.NewReader(data), func(localItem) { items++ }); !ok || err != nil || items != 6 {
		t.Errorf("split into %d items, %v, %v", items, ok, err)
	}
	got, err := DecodeLocal(data)
	if err != nil {
		t.Fatal(err)
	}
	want := Local{
		Workloads: []*mesh.Workload{fullWorkload(), {
			UID: "//Pod/shop/127.0.0.1", Namespace: "shop", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Capacity: 1,
		}},
		Services: []*mesh.Service{fullService(), {Name: "h", Namespace: "shop", Hostname: "h"}},
		Policies: []*mesh.Policy{fullPolicy(), {Name: "allow-nothing", Namespace: "shop"}},
	}
	want.Services[0].Ports[0].AppProtocol = mesh.ProtocolUnknown // of which the document knows nothing
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Error(diff)
	}
}

func TestLocalReportsEveryProblem(t *testing.T) {
	data, err := os.ReadFile("testdata/local.bad.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeLocal(data)
	if err == nil {
		t.Fatal("accepted")
	}
	const golden = "testdata/local.bad.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, rerr := os.ReadFile(golden)
	if rerr != nil {
		t.Fatal(rerr)
	}
	if diff := cmp.Diff(string(want), err.Error()+"\n"); diff != "" {
		t.Error(diff)
	}
	if len(got.Workloads) != 2 || got.Workloads[0].Name != "fine" || got.Workloads[1].Name != "also fine" {
		t.Errorf("good ones %v", got.Workloads)
	}
}

func TestLocalLayouts(t *testing.T) {
	const one = "namespace: n, workloadIps: [10.0.0.1]"
	for name, tc := range map[string]struct {
		document string
		split    bool
		count    int
		problem  string
	}{
		"empty":            {"", true, 0, ""},
		"comments":         {"# nothing\n\n", true, 0, ""},
		"flow":             {"workloads: [{" + one + "}]", false, 1, ""},
		"JSON":             {`{"workloads": [{"namespace": "n", "workloadIps": ["10.0.0.1"]}], "services": [], "policies": null}`, false, 1, ""},
		"empty lists":      {"workloads: []\nservices: []\n", false, 0, ""},
		"no value":         {"workloads:\nservices:\n", true, 0, ""},
		"indented":         {"workloads:\n  - {" + one + "}\n  -\n    namespace: n\n    workloadIps:\n    - 10.0.0.2\n", true, 2, ""},
		"no line end":      {"workloads:\n- {" + one + "}", true, 1, ""},
		"document mark":    {"---\nworkloads:\n- {" + one + "}\n", false, 1, ""},
		"carriage returns": {"workloads:\r\n- {" + one + "}\r\n", false, 1, ""},
		"anchors":          {"workloads:\n- &a {" + one + "}\n- {uid: u, namespace: n, workloadIps: [10.0.0.2], name: &b x}\n- name: *b\n  namespace: n\n  workloadIps: []\n", false, 3, ""},
		"twice":            {"workloads:\n- {" + one + "}\nworkloads:\n", false, 1, "given twice"},
		"unknown section":  {"gateways:\n- x\n", false, 0, "gateways: unknown field"},
		"a list":           {"- x\n", false, 0, "document: want a mapping"},
		"no YAML":          {"workloads: [\n", false, 0, "yaml"},
		"no list":          {"workloads:\n  a: b\n", false, 0, "workloads: want a list"},
		"two ids":          {"workloads:\n- {" + one + "}\n- {" + one + "}\n", true, 1, `workloads[1]: workload "//Pod/n/10.0.0.1" is also workloads[0]`},
	} {
		t.Run(name, func(t *testing.T) {
			if ok, err := splitLocal(strings.NewReader(tc.document), nil); ok != tc.split || err != nil {
				t.Errorf("split: %v, %v", ok, err)
			}
			got, err := DecodeLocal([]byte(tc.document))
			if len(got.Workloads) != tc.count {
				t.Errorf("%d workloads, want %d", len(got.Workloads), tc.count)
			}
			if tc.problem == "" && err != nil || tc.problem != "" && (err == nil || !strings.Contains(err.Error(), tc.problem)) {
				t.Errorf("error %v, want one with %q", err, tc.problem)
			}
		})
	}
}

// Parsing item by item and parsing the whole must agree. Run it with -fuzzminimizetime=1x: the order of maps makes coverage
// vary, and minimising would take all of the time.
func FuzzLocal(f *testing.F) {
	for _, name := range []string{"testdata/local.good.yaml", "testdata/local.bad.yaml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("workloads:\n- {namespace: n, workloadIps: [10.0.0.1]}\n"))
	f.Fuzz(func(t *testing.T, document []byte) {
		if strings.Contains(string(document), "&") {
			return // aliases of aliases take the parser long
		}
		got, err := DecodeLocal(document)
		if split, _ := splitLocal(bytes.NewReader(document), nil); !split || err != nil {
			return
		}
		d := newLocalDecoder()
		d.whole(document)
		if len(d.problems) > 0 {
			t.Fatalf("fine item by item, but: %v", d.problems)
		}
		if diff := cmp.Diff(d.out, got, byValue); diff != "" {
			t.Fatal(diff)
		}
	})
}

func BenchmarkDecodeLocal(b *testing.B) {
	var doc strings.Builder
	doc.WriteString("workloads:\n")
	for i := range 1000 {
		fmt.Fprintf(&doc, "- name: w%d\n  namespace: shop\n  workloadIps: [10.1.%d.%d]\n  protocol: HBONE\n  node: node1\n", i, i/256, i%256)
	}
	b.SetBytes(int64(doc.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeLocal([]byte(doc.String())); err != nil {
			b.Fatal(err)
		}
	}
}

// What a document says badly must be told from what it does not say: the one is kept as it was, the other is gone.
func TestLocalNamesWhatIsBad(t *testing.T) {
	for _, c := range []struct {
		name, document string
		want           []BadLocal
	}{
		{"nothing", "workloads:\n- {name: a, namespace: n, workloadIps: [10.0.0.1]}\n", nil},
		{"by uid", "workloads:\n- {uid: u, capacity: x}\n", []BadLocal{{"workloads", "u"}}},
		{"by name", "workloads:\n- {name: a, namespace: n, capacity: x}\n", []BadLocal{{"workloads", "//Pod/n/a"}}},
		{"without a name", "workloads:\n- {name: a, workloadIps: [10.0.0.1]}\n", []BadLocal{{"workloads", ""}}},
		{"by key", "services:\n- {namespace: n, hostname: h}\npolicies:\n- {namespace: n, name: p}\n",
			[]BadLocal{{"services", "n/h"}, {"policies", "n/p"}}},
		{"an item that is no YAML", "policies:\n- {name: \"p\n", []BadLocal{{"policies", ""}}},
		{"a document that is no YAML", "{", []BadLocal{{}}},
		{"a section that is no list", "policies: {}\n", []BadLocal{{}}},
	} {
		got, err := DecodeLocal([]byte(c.document))
		if (err != nil) != (c.want != nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.want, got.Bad); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}
