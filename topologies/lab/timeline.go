// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/topologies/wire"
)

// EventKind sorts events of a timeline by what they tell of.
type EventKind string

// Kinds of events.
const (
	EventApp      EventKind = "app"      // what an application did or got
	EventChange   EventKind = "change"   // an object that was applied or deleted, a signal to a daemon, a link that was cut
	EventProxy    EventKind = "proxy"    // a connection's beginning or end, as a ztunnel tells it
	EventDecision EventKind = "decision" // a policy that decided about a connection
	EventLog      EventKind = "log"      // any other line of a daemon's log
	EventPacket   EventKind = "packet"   // a segment that opened, ended or refused a connection, or an ICMP message
)

// Event is one thing that happened in a lab.
type Event struct {
	Time   time.Time `json:"time"`
	Kind   EventKind `json:"kind"`
	Source string    `json:"source"` // who saw or did it: "shop/web", "ztunnel node1", "control", "wire node1"
	Text   string    `json:"text"`
}

// Timeline is what happened in a lab, by the one clock that its parts share.
type Timeline []Event

// Within are the events from begin to end, in order of time; those of one instant stay as they were.
func (t Timeline) Within(begin, end time.Time) Timeline {
	t = slices.DeleteFunc(slices.Clone(t), func(e Event) bool { return e.Time.Before(begin) || e.Time.After(end) })
	slices.SortStableFunc(t, func(a, b Event) int { return a.Time.Compare(b.Time) })
	return t
}

// Draw writes a line per event, with its time since the first one. Of more than most lines (0: any number) those in the
// middle are counted, not shown: a failure shows in how things began and how they ended.
func (t Timeline) Draw(w io.Writer, most int) error {
	var b bytes.Buffer
	width := 0
	for _, e := range t {
		width = max(width, len(e.Source))
	}
	left := 0
	if most > 0 && len(t) > most {
		left = len(t) - most
	}
	first := (len(t) - left) / 3
	for i, e := range t {
		if left > 0 && i >= first && i < first+left {
			if i == first {
				fmt.Fprintf(&b, "%12s  … %d more …\n", "", left)
			}
			continue
		}
		fmt.Fprintf(&b, "%+9.2f ms  %-8s  %-*s  %s\n", float64(e.Time.Sub(t[0].Time))/float64(time.Millisecond), e.Kind, width, e.Source, e.Text)
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("draw timeline: %w", err)
	}
	return nil
}

// LogEvents reads a daemon's JSON log. Lines that are no JSON, such as a panic's trace, belong to the time of the line
// before them.
func LogEvents(source string, r io.Reader) (Timeline, error) {
	var t Timeline
	var at time.Time
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if text := bytes.TrimSpace(line); len(text) > 0 {
			events := logLine(source, text, at)
			at = events[len(events)-1].Time
			t = append(t, events...)
		}
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("read log of %s: %w", source, err)
		}
	}
}

// logLine returns at least one event; the last one has the line's own time.
func logLine(source string, line []byte, before time.Time) Timeline {
	var head struct {
		Time  time.Time `json:"time"`
		Level string    `json:"level"`
		Msg   string    `json:"msg"`
	}
	if err := json.Unmarshal(line, &head); err != nil || head.Time.IsZero() {
		return Timeline{{before, EventLog, source, string(line)}}
	}
	if e, err := telemetry.ParseRecord(line); err == nil {
		return accessEvents(source, e)
	}
	text := head.Msg
	if head.Level != "" && !strings.EqualFold(head.Level, "info") {
		text = head.Level + ": " + text
	}
	return Timeline{{head.Time, EventLog, source, text + attributes(line)}}
}

// attributes are what a log line says beside its message, in the line's own order.
func attributes(line []byte) string {
	var b strings.Builder
	d := json.NewDecoder(bytes.NewReader(line))
	if _, err := d.Token(); err != nil { // the opening brace
		return ""
	}
	for d.More() {
		key, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil {
			break
		}
		switch name := fmt.Sprint(key); name {
		case "time", "level", "msg":
		default:
			fmt.Fprintf(&b, " %s=%s", name, value)
		}
	}
	return b.String()
}

// accessEvents are a connection's beginning, what a policy decided about it, and its end.
func accessEvents(source string, e telemetry.Entry) Timeline {
	r := e.Record
	var t Timeline
	what := fmt.Sprintf("%s %s → %s", r.Direction, r.Src.Addr, r.Dst.Addr)
	if r.HBONEAddr.IsValid() {
		what += fmt.Sprintf(" (CONNECT %s)", r.HBONEAddr)
	}
	if !r.Start.IsZero() && r.Start.Before(r.Time) {
		t = append(t, Event{r.Start, EventProxy, source, what + " begins" + named(r)})
	}
	if r.Policy != "" {
		verdict := "was decided by"
		if strings.Contains(r.Flags, telemetry.FlagDeny) {
			verdict = "was denied by"
		}
		t = append(t, Event{r.Time, EventDecision, source, fmt.Sprintf("%s %s %s", what, verdict, r.Policy)})
	}
	end := fmt.Sprintf("%s: %s", what, e.Message)
	if e.Message == telemetry.MessageComplete {
		end += fmt.Sprintf(", sent %d, received %d bytes", r.BytesSent, r.BytesRecv)
	}
	for _, part := range []struct{ name, value string }{{"flags", strings.Trim(r.Flags, "-")}, {"error", e.Error}, {"trace", r.TraceID}} {
		if part.value != "" {
			end += ", " + part.name + " " + part.value
		}
	}
	return append(t, Event{r.Time, EventProxy, source, end})
}

// named tells who speaks with whom, as far as the record knows.
func named(r telemetry.Record) string {
	var b strings.Builder
	for _, part := range []struct{ name, value string }{
		{"service", r.Service}, {"from", r.Src.Identity.String()}, {"to", r.Dst.Identity.String()},
	} {
		if part.value != "" {
			fmt.Fprintf(&b, ", %s %s", part.name, part.value)
		}
	}
	return b.String()
}

// PacketEvents are the packets of a recording but those to many and to itself. One that passed several interfaces of the place is told once.
func PacketEvents(source string, c *wire.Capture) Timeline {
	type sight struct {
		src, dst, flags string
		seq             uint32
	}
	const again = 50 * time.Millisecond // a packet leaves the place sooner; later it was sent again
	last := map[sight]time.Time{}
	var t Timeline
	for _, p := range c.Packets() {
		if p.Dst.Addr().IsMulticast() || p.Dst.Addr().IsLoopback() {
			continue // neighbours that talk about the link, and a host that talks to itself
		}
		s := sight{p.Src.String(), p.Dst.String(), p.Flags, p.Seq}
		at, seen := last[s]
		last[s] = p.Time
		if seen && p.Time.Sub(at) < again {
			continue
		}
		text := fmt.Sprintf("%s → %s %s", p.Src, p.Dst, p.Flags)
		if p.Protocol != "tcp" {
			text = fmt.Sprintf("%s → %s %s", p.Src.Addr(), p.Dst.Addr(), strings.ToUpper(p.Protocol))
		}
		if seen {
			text += ", sent again"
		}
		t = append(t, Event{p.Time, EventPacket, source, text})
	}
	return t
}
