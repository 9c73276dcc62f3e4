// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Draw writes the trace as a picture of its path: hops from top to bottom, and between them what the wire carries.
// Times are from the start of the call.
func (t *Trace) Draw(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s → %s   %s\n\n", t.Hops[0].Name, t.URL, t.outcome())
	for i, h := range t.Hops {
		t.drawHop(&b, h)
		if i < len(t.Legs) {
			drawLeg(&b, t.Legs[i], i+1 < len(t.Hops))
		}
	}
	if len(t.Missing) > 0 {
		b.WriteString("\nincomplete:\n")
		for _, m := range t.Missing {
			fmt.Fprintf(&b, "  %s\n", m)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *Trace) outcome() string {
	c := t.Call
	switch {
	case !c.OK:
		return fmt.Sprintf("failed after %s: %s", ms(c.Latency), c.Error)
	case c.Status > 0:
		return fmt.Sprintf("%d %s in %s", c.Status, http.StatusText(c.Status), ms(c.Latency))
	default:
		return "ok in " + ms(c.Latency)
	}
}

func (t *Trace) drawHop(b *strings.Builder, h Hop) {
	switch h.Role {
	case RoleClient:
		fmt.Fprintf(b, "pod %s%s\n", h.Name, onNode(h))
	case RoleServer:
		kind := "pod "
		if h.Node == "" {
			kind = "host "
		}
		fmt.Fprintf(b, "%s%s%s\n", kind, h.Name, onNode(h))
		t.drawSeen(b)
	default:
		fmt.Fprintf(b, "%s%s %s", h.Name, onNode(h), h.Role)
		if !h.Start.IsZero() {
			fmt.Fprintf(b, "   +%s for %s", ms(h.Start.Sub(t.Call.Start)), ms(h.Duration))
		}
		fmt.Fprintf(b, "   sent %d, received %d bytes\n", h.BytesSent, h.BytesRecv)
		for _, d := range []struct{ name, value string }{
			{"service", h.Service}, {"trace", h.TraceID}, {"flags", strings.Trim(h.Flags, "-")}, {"policy", h.Policy}, {"error", h.Error},
		} {
			if d.value != "" {
				fmt.Fprintf(b, "      %s %s\n", d.name, d.value)
			}
		}
	}
}

func (t *Trace) drawSeen(b *strings.Builder) {
	s := t.Call.Seen
	if s == nil {
		return
	}
	fmt.Fprintf(b, "      saw %s", s.RemoteAddr)
	if s.Method != "" {
		fmt.Fprintf(b, ", %s %s %s, host %s", s.Proto, s.Method, s.Path, s.Host)
	}
	b.WriteByte('\n')
}

func drawLeg(b *strings.Builder, l Leg, reached bool) {
	fmt.Fprintf(b, "  │   %s ", l.Protocol)
	if l.Src.IsValid() { // else nothing was ever sent from there
		fmt.Fprintf(b, "%s ", l.Src)
	}
	fmt.Fprintf(b, "→ %s", l.Dst)
	if l.Translated.IsValid() {
		fmt.Fprintf(b, ", translated to %s", l.Translated)
	}
	if l.Authority != "" {
		fmt.Fprintf(b, ", CONNECT %s", l.Authority)
	}
	b.WriteByte('\n')
	if l.SrcIdentity != "" || l.DstIdentity != "" {
		fmt.Fprintf(b, "  │   mutual TLS %s → %s\n", l.SrcIdentity, l.DstIdentity)
	}
	if reached {
		b.WriteString("  ▼\n")
	} else {
		b.WriteString("  ✕\n")
	}
}

func onNode(h Hop) string {
	if h.Node == "" {
		return ""
	}
	return " (" + h.Node + ")"
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}
