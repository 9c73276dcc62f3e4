// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// GraphDOT writes a graph in Graphviz's language. Workloads are boxes, services ellipses with dotted lines to their
// endpoints, hosts outside octagons.
func GraphDOT(w io.Writer, g *schema.Graph, by Group) error {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph mesh {\n\trankdir=LR;\n\tlabel=%s;\n\tnode [fontname=\"sans-serif\"];\n\tedge [fontname=\"sans-serif\", fontsize=10];\n", quote(g.Lab+": "+window(g)))
	for i, box := range boxes(g, by) {
		fmt.Fprintf(&b, "\tsubgraph cluster_%d {\n\t\tlabel=%s;\n", i, quote(box))
		for j := range g.Nodes {
			if n := &g.Nodes[j]; by.of(n) == box {
				fmt.Fprintf(&b, "\t\t%s [%s];\n", quote(n.ID), dotNode(n))
			}
		}
		b.WriteString("\t}\n")
	}
	for i := range g.Nodes {
		for _, e := range g.Nodes[i].Endpoints {
			fmt.Fprintf(&b, "\t%s -> %s [style=dotted, arrowhead=none];\n", quote(g.Nodes[i].ID), quote(e))
		}
	}
	for i := range g.Edges {
		e := &g.Edges[i]
		label := facts(e)
		if e.Service != "" {
			label += "\nvia " + e.Service[strings.IndexByte(e.Service, '/')+1:]
		}
		if p := proof(e); p != "" {
			label += "\n" + p
		}
		look := map[schema.GraphProtocol]string{
			schema.GraphHBONE: "color=\"#1a7f37\"", schema.GraphPlain: "color=\"#9a6700\", style=dashed", schema.GraphDenied: "color=\"#cf222e\", style=dashed, arrowhead=tee",
		}[e.Protocol]
		fmt.Fprintf(&b, "\t%s -> %s [label=%s, %s];\n", quote(e.From), quote(e.To), quote(label), look)
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func boxes(g *schema.Graph, by Group) []string {
	var out []string
	for i := range g.Nodes {
		out = append(out, by.of(&g.Nodes[i]))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func dotNode(n *schema.GraphNode) string {
	switch n.Kind {
	case schema.GraphService:
		return "shape=ellipse, label=" + quote("service "+n.Name)
	case schema.GraphExternal:
		return "shape=octagon, label=" + quote(n.Name)
	}
	colour := map[schema.Enrolment]string{schema.Ambient: "#1a7f37", schema.Pending: "#9a6700", schema.MeshPart: "#0969da"}[n.Enrolment]
	if colour == "" {
		colour = "#6e7781"
	}
	return fmt.Sprintf("shape=box, color=%q, label=%s", colour, quote(n.Name+"\n"+n.Node+", "+string(n.Enrolment)))
}

// quote is a DOT string: a backslash escapes a quote, and \n is a line.
func quote(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
	return `"` + s + `"`
}
