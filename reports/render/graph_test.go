// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/reports/schema"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), -update rewrites it:\n%s", name, diff)
	}
}

func example() *schema.Graph {
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	const td = "spiffe://cluster.local/ns/shop/sa/"
	return &schema.Graph{
		Lab: "two <nodes>", From: at, To: at.Add(time.Minute),
		Nodes: []schema.GraphNode{
			{ID: "workload/plain/batch", Kind: schema.GraphWorkload, Namespace: "plain", Name: "batch", Node: "node1", Enrolment: schema.Outside},
			{ID: "workload/shop/cart", Kind: schema.GraphWorkload, Namespace: "shop", Name: "cart", Node: "node2", Enrolment: schema.Ambient, Identity: td + "cart"},
			{ID: "workload/shop/idle", Kind: schema.GraphWorkload, Namespace: "shop", Name: "idle", Node: "node2", Enrolment: schema.Pending},
			{ID: "workload/shop/web", Kind: schema.GraphWorkload, Namespace: "shop", Name: "web", Node: "node1", Enrolment: schema.Ambient, Identity: td + "web"},
			{ID: "service/shop/cart", Kind: schema.GraphService, Namespace: "shop", Name: "cart", Endpoints: []string{"workload/shop/cart"}},
			{ID: "service/shop/none", Kind: schema.GraphService, Namespace: "shop", Name: "none"},
			{ID: "external/203.0.113.80", Kind: schema.GraphExternal, Name: "203.0.113.80", Addresses: []string{"203.0.113.80"}},
		},
		Edges: []schema.GraphEdge{
			{From: "workload/plain/batch", To: "workload/shop/cart", Protocol: schema.GraphDenied, Ports: []int{8080}, Connections: 3, Errors: 3, Policies: []string{"shop/strict"}},
			{From: "workload/shop/web", To: "external/203.0.113.80", Protocol: schema.GraphPlain, Ports: []int{443}, Connections: 1, Errors: 1, LastError: `connect 203.0.113.80:443: "refused" & more`},
			{From: "workload/shop/web", To: "workload/shop/cart", Service: "service/shop/cart", Protocol: schema.GraphHBONE, Ports: []int{8080, 9000}, Connections: 1200, Open: 2, RatePerSecond: 20,
				BytesSent: 1_234_567, BytesReceived: 999, SourceIdentity: td + "web", DestinationIdentity: td + "cart"},
			{From: "workload/shop/web", To: "gone", Protocol: schema.GraphPlain},
		},
	}
}

func TestGraphGolden(t *testing.T) {
	for name, draw := range map[string]func(io.Writer) error{
		"graph.svg":      func(w io.Writer) error { return GraphSVG(w, example(), ByNamespace, Auto) },
		"graph-node.svg": func(w io.Writer) error { return GraphSVG(w, example(), ByNode, Dark) },
		"empty.svg":      func(w io.Writer) error { return GraphSVG(w, &schema.Graph{Lab: "none"}, ByNamespace, Light) },
		"graph.dot":      func(w io.Writer) error { return GraphDOT(w, example(), ByNamespace) },
	} {
		var b bytes.Buffer
		if err := draw(&b); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.String())
	}
}

// A drawing is XML, whatever names are in it.
func TestGraphSVGIsXML(t *testing.T) {
	var b bytes.Buffer
	if err := GraphSVG(&b, example(), ByNamespace, Auto); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(&b); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// mesh is a graph of n callers that call every one of n servers.
func mesh(n int) *schema.Graph {
	g := &schema.Graph{Lab: "big"}
	for i := range n {
		for _, kind := range []string{"client", "server"} {
			name := fmt.Sprintf("%s-with-a-rather-long-name-%d", kind, i)
			g.Nodes = append(g.Nodes, schema.GraphNode{ID: name, Kind: schema.GraphWorkload, Namespace: fmt.Sprint("ns", i%3), Name: name, Node: fmt.Sprint("node", i%2), Enrolment: schema.Ambient})
		}
		for j := range n {
			g.Edges = append(g.Edges, schema.GraphEdge{
				From: fmt.Sprintf("client-with-a-rather-long-name-%d", i), To: fmt.Sprintf("server-with-a-rather-long-name-%d", j), Protocol: schema.GraphHBONE,
				Connections: 1, LastError: strings.Repeat("long ", 40),
			})
		}
	}
	return g
}

// However many there are: no two nodes overlap, nor two boxes, nor two labels, and every node is in a box.
func TestNothingOverlaps(t *testing.T) {
	for _, by := range []Group{ByNamespace, ByNode} {
		for _, g := range []*schema.Graph{example(), mesh(1), mesh(7), mesh(20)} {
			l := layOut(g, by)
			for i, a := range l.nodes {
				for _, b := range l.nodes[:i] {
					if a.x < b.x+b.w && b.x < a.x+a.w && a.y < b.y+b.h && b.y < a.y+a.h {
						t.Errorf("%s, %d edges: nodes %s and %s overlap", by, len(g.Edges), a.name, b.name)
					}
				}
				inside := 0
				for _, x := range l.boxes {
					if a.x >= x.x && a.y >= x.y && a.x+a.w <= x.x+x.w && a.y+a.h <= x.y+x.h {
						inside++
					}
				}
				if inside != 1 || a.y+a.h > l.height || a.x+a.w > l.width {
					t.Errorf("%s, %d edges: node %s is in %d boxes of %d×%d", by, len(g.Edges), a.name, inside, l.width, l.height)
				}
			}
			for i, a := range l.boxes {
				for _, b := range l.boxes[:i] {
					if a.x < b.x+b.w && b.x < a.x+a.w && a.y < b.y+b.h && b.y < a.y+a.h {
						t.Errorf("%s, %d edges: boxes %s and %s overlap", by, len(g.Edges), a.title, b.title)
					}
				}
			}
			const line = 12
			for i, a := range l.texts {
				for _, b := range l.texts[:i] {
					if a.text != "" && b.text != "" && a.y < b.y+line && b.y < a.y+line && a.x < b.x+b.most && b.x < a.x+a.most {
						t.Errorf("%s, %d edges: labels %q and %q overlap", by, len(g.Edges), a.text, b.text)
					}
				}
			}
		}
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		size(0): "0 B", size(999): "999 B", size(1000): "1.0 kB", size(99_900): "100 kB", size(1_234_567): "1.2 MB", size(5e12): "5.0 TB",
		rate(0.01): "0.6/min", rate(0.5): "0.5/s", rate(120.4): "120/s", plural(1, "x"): "1 x", plural(2, "x"): "2 xs",
		account("spiffe://td/ns/a/sa/b"): "sa a/b", account("x"): "x", shorten("abcdef", 4): "abc…", shorten("abc", 4): "abc",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
