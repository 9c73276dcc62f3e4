// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// Theme is a drawing's colours.
type Theme string

// Themes. Auto follows the reader's settings.
const (
	Auto  Theme = "auto"
	Light Theme = "light"
	Dark  Theme = "dark"
)

// Measures of a drawing, in pixels.
const (
	margin    = 24
	column    = 230 // of callers, and of destinations
	lane      = 680 // between them
	row       = 48  // one edge
	nodeLeast = 40
	portGap   = 16 // between two arrows that arrive at one node
	boxTitle  = 24
	boxPad    = 10
	boxGap    = 18
	nodeGap   = 8
	charWide  = 6.8 // of a 12 px font, at most; of others in proportion
)

// GraphSVG draws a graph: callers at the left, whom they called at the right, and between them one line for each edge, with
// what it carried and who proved to be whom. No line crosses a label, however many there are. What saw no traffic, and the
// services, stand below.
func GraphSVG(w io.Writer, g *schema.Graph, by Group, theme Theme) error {
	l := layOut(g, by)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="system-ui, 'DejaVu Sans', sans-serif" font-size="12">`+"\n", l.width, l.height, l.width, l.height)
	fmt.Fprintf(&b, "<title>%s</title>\n<style>%s</style>\n", html.EscapeString("Mesh of "+g.Lab), styles(theme))
	b.WriteString(`<defs>`)
	for _, p := range []schema.GraphProtocol{schema.GraphHBONE, schema.GraphPlain} {
		fmt.Fprintf(&b, `<marker id="to-%s" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" class="fill-%[1]s"/></marker>`, class(p))
	}
	b.WriteString(`<marker id="to-denied" viewBox="0 0 10 10" refX="6" refY="5" markerWidth="11" markerHeight="11" markerUnits="userSpaceOnUse"><path d="M1 1L9 9M9 1L1 9" class="denied solid"/></marker></defs>` + "\n")
	fmt.Fprintf(&b, `<rect width="%d" height="%d" class="paper"/>`+"\n", l.width, l.height)
	l.heading(&b, g)
	for _, x := range l.boxes {
		x.write(&b)
	}
	for _, a := range l.arrows {
		a.write(&b)
	}
	for _, n := range l.nodes {
		n.write(&b)
	}
	for _, t := range l.texts {
		text(&b, t.x, t.y, t.class, t.text, t.most)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func class(p schema.GraphProtocol) string { return strings.ToLower(string(p)) }

const light = `.paper{fill:#fff}.text{fill:#1b1f24}.muted{fill:#57606a}.box{fill:#f6f8fa;stroke:#d0d7de}.node{fill:#fff;stroke:#8c959f}
.hbone{stroke:#1a7f37}.plain{stroke:#9a6700}.denied{stroke:#cf222e}.fill-hbone,.ambient{fill:#1a7f37}.fill-plain,.pending{fill:#9a6700}.fill-denied{fill:#cf222e}.outside{fill:#8c959f}.mesh{fill:#0969da}`

const dark = `.paper{fill:#0d1117}.text{fill:#e6edf3}.muted{fill:#9198a1}.box{fill:#151b23;stroke:#3d444d}.node{fill:#0d1117;stroke:#656c76}
.hbone{stroke:#3fb950}.plain{stroke:#d29922}.denied{stroke:#f85149}.fill-hbone,.ambient{fill:#3fb950}.fill-plain,.pending{fill:#d29922}.fill-denied{fill:#f85149}.outside{fill:#656c76}.mesh{fill:#4493f8}`

func styles(t Theme) string {
	const shape = `.hbone,.plain,.denied{fill:none;stroke-width:2}.plain{stroke-dasharray:7 4}.denied{stroke-dasharray:2 4}.solid{stroke-dasharray:none}.bold{font-weight:600}.small{font-size:11px}.title{font-size:16px;font-weight:600}` + "\n"
	switch t {
	case Light:
		return shape + light
	case Dark:
		return shape + dark
	}
	return shape + light + "\n@media (prefers-color-scheme:dark){" + dark + "}"
}

// text writes a line, shortened to most pixels; the whole of it is its title.
func text(b *strings.Builder, x, y int, class, s string, most int) {
	size := 1.0
	if strings.Contains(class, "small") {
		size = 11.0 / 12
	}
	if strings.Contains(class, "bold") {
		size *= 1.08
	}
	short := shorten(s, int(float64(most)/(charWide*size)))
	title := ""
	if short != s {
		title = "<title>" + html.EscapeString(s) + "</title>"
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" class="%s">%s%s</text>`+"\n", x, y, class, title, html.EscapeString(short))
}

func shorten(s string, most int) string {
	if most < 1 || utf8.RuneCountInString(s) <= most {
		return s
	}
	r := []rune(s)
	return string(r[:max(0, most-1)]) + "…"
}

type svgBox struct {
	x, y, w, h int
	title      string
}

func (x svgBox) write(b *strings.Builder) {
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" rx="8" class="box"/>`+"\n", x.x, x.y, x.w, x.h)
	text(b, x.x+boxPad, x.y+17, "muted bold small", x.title, x.w-2*boxPad)
}

type svgNode struct {
	x, y, w, h int
	node       *schema.GraphNode
	dot        string // class of its enrolment; "" for none
	name, more string
}

func (n *svgNode) write(b *strings.Builder) {
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" rx="5" class="node"/>`+"\n", n.x, n.y, n.w, n.h)
	middle, left := n.y+n.h/2, n.x+10
	if n.dot != "" {
		fmt.Fprintf(b, `<circle cx="%d" cy="%d" r="5" class="%s"/>`+"\n", n.x+14, middle, n.dot)
		left = n.x + 26
	}
	if n.more == "" {
		text(b, left, middle+4, "text bold", n.name, n.x+n.w-left-6)
		return
	}
	text(b, left, middle-3, "text bold", n.name, n.x+n.w-left-6)
	text(b, left, middle+13, "muted small", n.more, n.x+n.w-left-6)
}

type svgText struct {
	x, y, most  int
	class, text string
}

// svgArrow is a line along its lane and then to its end.
type svgArrow struct {
	x, y     int // where it begins
	lane     int // x where the lane ends
	toX, toY int
	class    string
	about    string
	wide     float64
}

func (a svgArrow) write(b *strings.Builder) {
	bend := (a.toX - a.lane) / 2
	fmt.Fprintf(b, `<path d="M%d %dH%dC%d %d %d %d %d %d" class="%s" style="stroke-width:%.1f" marker-end="url(#to-%s)"><title>%s</title></path>`+"\n",
		a.x, a.y, a.lane, a.lane+bend, a.y, a.toX-bend, a.toY, a.toX-1, a.toY, a.class, a.wide, a.class, html.EscapeString(a.about))
}

// thickness grows with the number of connections, slowly.
func thickness(e *schema.GraphEdge) float64 {
	return math.Min(5, 1.5+0.6*math.Log10(float64(max(1, e.Connections))))
}

func (l *layout) heading(b *strings.Builder, g *schema.Graph) {
	text(b, margin, 34, "text title", "Mesh of "+g.Lab, l.width)
	text(b, margin, 54, "muted", window(g), l.width)
	x := margin
	for _, p := range []struct{ class, about string }{
		{"hbone", "HBONE: mutual TLS"}, {"plain", "plain TCP"}, {"denied", "denied by policy"},
	} {
		fmt.Fprintf(b, `<path d="M%d 74h28" class="%s"/>`+"\n", x, p.class)
		text(b, x+36, 78, "text small", p.about, lane)
		x += 36 + int(float64(len(p.about))*charWide) + 14
	}
	for _, p := range []struct{ class, about string }{{"ambient", "ambient"}, {"pending", "pending"}, {"outside", "outside the mesh"}} {
		fmt.Fprintf(b, `<circle cx="%d" cy="74" r="5" class="%s"/>`+"\n", x+5, p.class)
		text(b, x+16, 78, "text small", p.about, lane)
		x += 16 + int(float64(len(p.about))*charWide) + 14
	}
}
