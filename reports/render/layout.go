// SPDX-License-Identifier: Apache-2.0

package render

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// layout is where everything of a drawing stands.
type layout struct {
	width, height int
	boxes         []svgBox
	nodes         []*svgNode
	arrows        []svgArrow
	texts         []svgText

	g    *schema.Graph
	by   Group
	byID map[string]*schema.GraphNode
}

const headHeight = 96

func layOut(g *schema.Graph, by Group) *layout {
	l := &layout{g: g, by: by, byID: map[string]*schema.GraphNode{}, width: 2*margin + 2*column + lane}
	for i := range g.Nodes {
		l.byID[g.Nodes[i].ID] = &g.Nodes[i]
	}
	var edges []*schema.GraphEdge
	for i := range g.Edges {
		if e := &g.Edges[i]; l.byID[e.From] != nil && l.byID[e.To] != nil {
			edges = append(edges, e)
		}
	}
	slices.SortStableFunc(edges, func(a, b *schema.GraphEdge) int {
		return cmp.Or(l.order(l.byID[a.From], l.byID[b.From]), l.order(l.byID[a.To], l.byID[b.To]))
	})
	bottom := headHeight
	if len(edges) > 0 {
		bottom = l.flow(edges)
	} else {
		l.texts = append(l.texts, svgText{margin, headHeight + 14, l.width, "muted", "No traffic was seen."})
		bottom += 34
	}
	bottom = l.idle(edges, bottom)
	bottom = l.services(bottom)
	l.height = bottom + margin
	return l
}

// order is that of boxes and of nodes in them.
func (l *layout) order(a, b *schema.GraphNode) int {
	outside := func(n *schema.GraphNode) int {
		if n.Kind == schema.GraphExternal {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(outside(a), outside(b)), cmp.Compare(l.by.of(a), l.by.of(b)), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// flow places callers, edges and destinations, and returns where they end.
func (l *layout) flow(edges []*schema.GraphEdge) int {
	callers, out := l.ends(edges, func(e *schema.GraphEdge) string { return e.From })
	called, in := l.ends(edges, func(e *schema.GraphEdge) string { return e.To })
	left, leftEnd := l.stack(callers, margin, func(n *schema.GraphNode) int { return max(nodeLeast, out[n.ID]*row-nodeGap) })
	right, rightEnd := l.stack(called, margin+column+lane, func(n *schema.GraphNode) int {
		return max(nodeLeast, (in[n.ID]+1)*portGap)
	})
	begun, arrived := map[string]int{}, map[string]int{}
	for _, e := range edges {
		from, to := left[e.From], right[e.To]
		// The edges of a caller are spread over its height, those of a destination over its own, both in the order of rows.
		y := from.y + from.h*(2*begun[e.From]+1)/(2*out[e.From])
		toY := to.y + to.h*(arrived[e.To]+1)/(in[e.To]+1)
		begun[e.From]++
		arrived[e.To]++
		start, end := from.x+from.w, margin+column+lane-70
		about := strings.TrimSpace(facts(e) + "\n" + proof(e))
		l.arrows = append(l.arrows, svgArrow{start, y, end, to.x, toY, class(e.Protocol), about, thickness(e)})
		head := facts(e)
		if s := l.byID[e.Service]; s != nil {
			head = "via " + s.Name + at(ports(e)) + " · " + head
		} else if p := ports(e); p != "" {
			head = "port " + p + " · " + head
		}
		l.texts = append(l.texts, svgText{start + 24, y - 7, end - start - 30, "text", head}, svgText{start + 24, y + 15, end - start - 30, "muted small", proof(e)})
	}
	return max(leftEnd, rightEnd)
}

func at(ports string) string {
	if ports == "" {
		return ""
	}
	return " → " + ports
}

// ends are the nodes at one side of edges, in order, and how many edges each has.
func (l *layout) ends(edges []*schema.GraphEdge, end func(*schema.GraphEdge) string) ([]*schema.GraphNode, map[string]int) {
	count := map[string]int{}
	var nodes []*schema.GraphNode
	for _, e := range edges {
		if count[end(e)]++; count[end(e)] == 1 {
			nodes = append(nodes, l.byID[end(e)])
		}
	}
	slices.SortFunc(nodes, l.order)
	return nodes, count
}

// stack places nodes below each other, in boxes, and returns them by id, and where they end.
func (l *layout) stack(nodes []*schema.GraphNode, x int, height func(*schema.GraphNode) int) (map[string]*svgNode, int) {
	placed, y := map[string]*svgNode{}, headHeight
	for len(nodes) > 0 {
		box := svgBox{x: x, y: y, w: column, title: l.by.of(nodes[0])}
		y += boxTitle
		for len(nodes) > 0 && l.by.of(nodes[0]) == box.title {
			n := l.node(nodes[0], x+boxPad, y, column-2*boxPad, height(nodes[0]))
			placed[nodes[0].ID] = n
			y += n.h + nodeGap
			nodes = nodes[1:]
		}
		y += boxPad - nodeGap
		box.h = y - box.y
		l.boxes = append(l.boxes, box)
		y += boxGap
	}
	return placed, y - boxGap
}

func (l *layout) node(n *schema.GraphNode, x, y, w, h int) *svgNode {
	s := &svgNode{x: x, y: y, w: w, h: h, node: n, name: n.Name, dot: string(n.Enrolment)}
	switch {
	case n.Kind == schema.GraphWorkload && l.by == ByNode:
		s.more = n.Namespace
	case n.Kind == schema.GraphWorkload:
		s.more = n.Node
	case n.Kind == schema.GraphExternal && len(n.Addresses) > 0 && n.Addresses[0] != n.Name:
		s.more = n.Addresses[0]
	}
	if n.Kind == schema.GraphWorkload {
		s.more = strings.TrimPrefix(s.more+" · "+string(n.Enrolment), " · ")
	}
	l.nodes = append(l.nodes, s)
	return s
}

const chip = 170 // a node below the flow

// idle places the workloads without an edge, below y, and returns where they end.
func (l *layout) idle(edges []*schema.GraphEdge, y int) int {
	busy := map[string]bool{}
	for _, e := range edges {
		busy[e.From], busy[e.To] = true, true
	}
	var nodes []*schema.GraphNode
	for i := range l.g.Nodes {
		if n := &l.g.Nodes[i]; n.Kind != schema.GraphService && !busy[n.ID] {
			nodes = append(nodes, n)
		}
	}
	return l.strip(nodes, "No traffic seen", y, func(n *schema.GraphNode, x, y int) { l.node(n, x, y, chip, nodeLeast) })
}

// services lists the services and their endpoints, below y, and returns where they end.
func (l *layout) services(y int) int {
	var nodes []*schema.GraphNode
	for i := range l.g.Nodes {
		if n := &l.g.Nodes[i]; n.Kind == schema.GraphService {
			nodes = append(nodes, n)
		}
	}
	by := l.by
	l.by = ByNamespace // a service is on no machine
	defer func() { l.by = by }()
	return l.strip(nodes, "Services", y, func(n *schema.GraphNode, x, y int) {
		var names []string
		for _, e := range n.Endpoints {
			_, name, _ := strings.Cut(e, "/")
			names = append(names, strings.TrimPrefix(name, n.Namespace+"/"))
		}
		more := "no endpoints"
		if len(names) > 0 {
			more = "→ " + strings.Join(names, ", ")
		}
		l.nodes = append(l.nodes, &svgNode{x: x, y: y, w: chip, h: nodeLeast, node: n, name: n.Name, more: more})
	})
}

// strip places nodes in boxes that stand side by side and wrap.
func (l *layout) strip(nodes []*schema.GraphNode, title string, y int, place func(n *schema.GraphNode, x, y int)) int {
	if len(nodes) == 0 {
		return y
	}
	slices.SortFunc(nodes, l.order)
	y += 2 * boxGap
	l.texts = append(l.texts, svgText{margin, y, l.width, "text bold", title})
	y += 12
	x, tallest := margin, 0
	for len(nodes) > 0 {
		name, n := l.by.of(nodes[0]), 0
		for n < len(nodes) && l.by.of(nodes[n]) == name {
			n++
		}
		perRow := min(n, (l.width-2*margin-2*boxPad+nodeGap)/(chip+nodeGap))
		rows := (n + perRow - 1) / perRow
		w, h := 2*boxPad+perRow*(chip+nodeGap)-nodeGap, boxTitle+rows*(nodeLeast+nodeGap)-nodeGap+boxPad
		if x > margin && x+w > l.width-margin {
			x, y, tallest = margin, y+tallest+boxGap, 0
		}
		l.boxes = append(l.boxes, svgBox{x, y, w, h, name})
		for i, node := range nodes[:n] {
			place(node, x+boxPad+i%perRow*(chip+nodeGap), y+boxTitle+i/perRow*(nodeLeast+nodeGap))
		}
		nodes = nodes[n:]
		x, tallest = x+w+boxGap, max(tallest, h)
	}
	return y + tallest
}
