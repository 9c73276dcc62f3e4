// SPDX-License-Identifier: Apache-2.0

// Package render draws result documents: a mesh's graph as SVG for people and as DOT for other programs. It is pure: the
// same document always gives the same bytes, so that two of them can be compared. It reads reports/schema and nothing else.
package render

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/reports/schema"
)

// Group is what boxes of a drawing stand for.
type Group string

// Groups.
const (
	ByNamespace Group = "namespace"
	ByNode      Group = "node"
)

// of is the box that a node is in.
func (g Group) of(n *schema.GraphNode) string {
	switch {
	case n.Kind == schema.GraphExternal:
		return "outside the cluster"
	case g == ByNode:
		return n.Node
	}
	return n.Namespace
}

// facts is what an edge's connections came to, in words.
func facts(e *schema.GraphEdge) string {
	parts := []string{string(e.Protocol), plural(e.Connections, "connection")}
	if e.Open > 0 {
		parts = append(parts, fmt.Sprintf("%d open", e.Open))
	}
	if e.RatePerSecond > 0 {
		parts = append(parts, rate(e.RatePerSecond))
	}
	if e.BytesSent+e.BytesReceived > 0 {
		parts = append(parts, "↑ "+size(e.BytesSent)+" ↓ "+size(e.BytesReceived))
	}
	if e.Errors > 0 && e.Protocol != schema.GraphDenied {
		parts = append(parts, plural(e.Errors, "error"))
	}
	return strings.Join(parts, " · ")
}

// proof is who proved to be whom, or what kept them from it.
func proof(e *schema.GraphEdge) string {
	switch {
	case e.Protocol == schema.GraphDenied && len(e.Policies) > 0:
		return "refused by " + strings.Join(e.Policies, ", ") + as(e.SourceIdentity)
	case e.SourceIdentity != "" && e.DestinationIdentity != "":
		return account(e.SourceIdentity) + " → " + account(e.DestinationIdentity)
	case e.LastError != "":
		return e.LastError
	case e.SourceIdentity != "":
		return account(e.SourceIdentity)
	case e.Protocol == schema.GraphPlain:
		return "no identity"
	}
	return ""
}

func as(identity string) string {
	if identity == "" {
		return ", no identity"
	}
	return " for " + account(identity)
}

// account is the part of a SPIFFE identity that people tell apart.
func account(identity string) string {
	_, rest, ok := strings.Cut(identity, "/ns/")
	ns, sa, ok2 := strings.Cut(rest, "/sa/")
	if !ok || !ok2 {
		return identity
	}
	return "sa " + ns + "/" + sa
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

func rate(perSecond float64) string {
	switch {
	case perSecond >= 10:
		return fmt.Sprintf("%.0f/s", perSecond)
	case perSecond >= 0.095:
		return fmt.Sprintf("%.1f/s", perSecond)
	}
	return fmt.Sprintf("%.1f/min", perSecond*60)
}

func size(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for v >= 999.5 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	if i == 0 || v >= 99.5 {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func window(g *schema.Graph) string {
	return fmt.Sprintf("%s, %s to %s UTC", g.To.Sub(g.From).Round(100*time.Millisecond),
		g.From.UTC().Format("2006-01-02 15:04:05"), g.To.UTC().Format("15:04:05"))
}

func ports(e *schema.GraphEdge) string {
	var list []string
	for _, p := range e.Ports {
		list = append(list, strconv.Itoa(p))
	}
	return strings.Join(list, ",")
}
