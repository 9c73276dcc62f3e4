// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// Messages of the access log.
const (
	MessageOpened   = "connection opened"   // level debug
	MessageComplete = "connection complete" // level info, or error with an "error" key
	MessageFailed   = "connection failed"   // level warn
)

// AccessLog writes one line per event, in upstream's formats and with upstream's keys (src.*, dst.*, direction,
// bytes_sent, bytes_recv, duration, error). Unknown values are left out; identities appear only on mutual TLS.
// Keys of our own come last: policy, response_flags (if not "-"), trace_id, upstream.local_addr, start_unix_nano,
// schema. A line is written at once, or within 10 ms together with others if it comes that soon after the one before; Flush
// writes what waits. A Write is of whole lines; its errors are dropped. Safe for concurrent use.
type AccessLog struct {
	json  bool
	level slog.Leveler // set once

	mu    sync.Mutex
	w     io.Writer
	buf   []byte    // lines that wait
	wrote time.Time // the last time
	timer *time.Timer
	armed bool // timer writes what waits
}

// A proxy at its limit has a line for every connection, and each write costs more than the line (see netns, rawcall).
const (
	logTogether = 10 * time.Millisecond
	logMost     = 32 << 10 // bytes that may wait
)

// NewAccessLog writes to w in format "json" or, for anything else, "text". It logs from level info on.
func NewAccessLog(w io.Writer, format string) *AccessLog {
	return &AccessLog{json: format == "json", w: w, level: slog.LevelInfo}
}

// SetLevel makes l the threshold. Call it before the first event; l itself may change at any time.
func (a *AccessLog) SetLevel(l slog.Leveler) { a.level = l }

// Opened reports a connection that has just been established.
func (a *AccessLog) Opened(r *Record) { a.write(slog.LevelDebug, MessageOpened, r) }

// Complete reports the end of a connection that had been established.
func (a *AccessLog) Complete(r *Record) {
	level := slog.LevelInfo
	if r.Err != nil {
		level = slog.LevelError
	}
	a.write(level, MessageComplete, r)
}

// Failed reports a connection that was never established.
func (a *AccessLog) Failed(r *Record) { a.write(slog.LevelWarn, MessageFailed, r) }

func (a *AccessLog) write(level slog.Level, message string, r *Record) {
	if level < a.level.Level() {
		return
	}
	now := r.Time
	if now.IsZero() {
		now = time.Now()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	l := line{buf: a.buf, json: a.json}
	l.begin(now, levelName(level), message)
	l.record(message, now, r)
	l.end()
	a.buf = l.buf
	a.wrap(time.Now())
}

// wrap sees to it that what waits is written. a.mu is held.
func (a *AccessLog) wrap(now time.Time) {
	switch since := now.Sub(a.wrote); {
	case len(a.buf) >= logMost || (!a.armed && since >= logTogether):
		a.flush(now)
	case a.armed:
	case a.timer == nil:
		a.armed, a.timer = true, time.AfterFunc(logTogether-since, a.Flush)
	default:
		a.armed = true
		a.timer.Reset(logTogether - since)
	}
}

// Flush writes what waits.
func (a *AccessLog) Flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.armed = false
	a.flush(time.Now())
}

// flush does so. a.mu is held.
func (a *AccessLog) flush(now time.Time) {
	a.wrote = now
	if len(a.buf) == 0 {
		return
	}
	_, _ = a.w.Write(a.buf)
	if a.buf = a.buf[:0]; cap(a.buf) > 2*logMost {
		a.buf = nil
	}
}

func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	default:
		return "debug"
	}
}

// line is one log line in the making.
type line struct {
	buf   []byte
	json  bool
	first bool // text: the next key is the first
}

const timeFormat = "2006-01-02T15:04:05.000000000Z"

func (l *line) begin(now time.Time, level, message string) {
	if !l.json {
		l.buf = now.UTC().AppendFormat(l.buf, timeFormat)
		l.buf = append(l.buf, '\t')
		l.buf = append(l.buf, level...)
		l.buf = append(l.buf, "\taccess\t"...)
		l.buf = append(l.buf, message...)
		l.buf = append(l.buf, '\t')
		l.first = true
		return
	}
	l.buf = append(l.buf, `{"time":"`...)
	l.buf = now.UTC().AppendFormat(l.buf, timeFormat)
	l.buf = append(l.buf, `","level":"`...)
	l.buf = append(l.buf, level...)
	l.buf = append(l.buf, `","scope":"access","message":"`...)
	l.buf = append(l.buf, message...)
	l.buf = append(l.buf, '"')
}

func (l *line) end() {
	if l.json {
		l.buf = append(l.buf, '}')
	}
	l.buf = append(l.buf, '\n')
}

func (l *line) record(message string, now time.Time, r *Record) {
	l.peer(&r.Src, &srcKeys, r)
	l.addr("dst.addr", r.Dst.Addr)
	l.addr("dst.hbone_addr", r.HBONEAddr)
	l.str("dst.service", r.Service)
	l.peer(&r.Dst, &dstKeys, r)
	l.str("direction", string(r.Direction))
	if message == MessageComplete {
		l.uint("bytes_sent", r.BytesSent)
		l.uint("bytes_recv", r.BytesRecv)
		l.duration(now, r)
	}
	if r.Err != nil {
		l.str("error", r.Err.Error())
	}
	l.str("policy", r.Policy)
	if f := r.flags(); f != FlagNone {
		l.str("response_flags", f)
	}
	l.str("trace_id", r.TraceID)
	l.addr("upstream.local_addr", r.Upstream)
	if !r.Start.IsZero() {
		l.uint("start_unix_nano", uint64(r.Start.UnixNano()))
	}
	l.uint("schema", RecordVersion)
}

type peerKeys struct{ addr, workload, namespace, identity, cluster string }

var (
	srcKeys = peerKeys{"src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster"}
	dstKeys = peerKeys{"", "dst.workload", "dst.namespace", "dst.identity", "dst.cluster"} // its address comes earlier
)

func (l *line) peer(p *Peer, k *peerKeys, r *Record) {
	if k.addr != "" {
		l.addr(k.addr, p.Addr)
	}
	name := p.Name
	if name == "" {
		name = p.Workload
	}
	l.str(k.workload, name)
	l.str(k.namespace, p.Namespace)
	if r.Security == MutualTLS && !p.Identity.IsZero() {
		l.identity(k.identity, p)
	}
	l.str(k.cluster, p.Cluster)
}

func (l *line) key(k string) {
	if l.json {
		l.buf = append(l.buf, `,"`...)
		l.buf = append(l.buf, k...)
		l.buf = append(l.buf, `":`...)
		return
	}
	if !l.first {
		l.buf = append(l.buf, ' ')
	}
	l.first = false
	l.buf = append(l.buf, k...)
	l.buf = append(l.buf, '=')
}

func (l *line) str(k, v string) {
	if v == "" {
		return
	}
	l.key(k)
	l.quote(v)
}

// quote writes v in quotes: JSON's escapes are what a reader of either format understands.
func (l *line) quote(v string) {
	if plain(v) {
		l.buf = append(l.buf, '"')
		l.buf = append(l.buf, v...)
		l.buf = append(l.buf, '"')
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		b = strconv.AppendQuoteToASCII(nil, v)
	}
	l.buf = append(l.buf, b...)
}

func plain(v string) bool {
	for i := range len(v) {
		if c := v[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == 0x7f {
			return false
		}
	}
	return true
}

func (l *line) identity(k string, p *Peer) {
	l.key(k)
	l.buf = append(l.buf, `"spiffe://`...)
	l.buf = append(l.buf, p.Identity.TrustDomain...)
	l.buf = append(l.buf, "/ns/"...)
	l.buf = append(l.buf, p.Identity.Namespace...)
	l.buf = append(l.buf, "/sa/"...)
	l.buf = append(l.buf, p.Identity.ServiceAccount...)
	l.buf = append(l.buf, '"')
}

func (l *line) addr(k string, v netip.AddrPort) {
	if !v.IsValid() {
		return
	}
	l.key(k)
	if l.json {
		l.buf = append(l.buf, '"')
	}
	l.buf = v.AppendTo(l.buf)
	if l.json {
		l.buf = append(l.buf, '"')
	}
}

func (l *line) uint(k string, v uint64) {
	l.key(k)
	l.buf = strconv.AppendUint(l.buf, v, 10)
}

func (l *line) duration(now time.Time, r *Record) {
	d := r.Duration
	if d == 0 && !r.Start.IsZero() {
		d = now.Sub(r.Start)
	}
	l.key("duration")
	l.buf = append(l.buf, '"')
	l.buf = strconv.AppendInt(l.buf, d.Milliseconds(), 10)
	l.buf = append(l.buf, `ms"`...)
}
