// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// ErrNotAccess is returned for a line of another scope: a proxy's log holds more than its access log.
var ErrNotAccess = errors.New("not an access-log line")

// Entry is one access-log line, read back.
type Entry struct {
	Message string // MessageOpened, MessageComplete or MessageFailed
	Level   string
	Schema  int // 0: a line of a proxy that is not ours
	Error   string
	Record  Record // Err stays nil: see Error. Peers carry what the log names: address, Name, Namespace, Cluster, Identity
}

// wireEntry has the log's keys.
type wireEntry struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Scope   string    `json:"scope"`
	Message string    `json:"message"`

	SrcAddr      netip.AddrPort `json:"src.addr"`
	SrcWorkload  string         `json:"src.workload"`
	SrcNamespace string         `json:"src.namespace"`
	SrcIdentity  string         `json:"src.identity"`
	SrcCluster   string         `json:"src.cluster"`
	DstAddr      netip.AddrPort `json:"dst.addr"`
	HBONEAddr    string         `json:"dst.hbone_addr"`
	DstService   string         `json:"dst.service"`
	DstWorkload  string         `json:"dst.workload"`
	DstNamespace string         `json:"dst.namespace"`
	DstIdentity  string         `json:"dst.identity"`
	DstCluster   string         `json:"dst.cluster"`
	Direction    Direction      `json:"direction"`
	BytesSent    uint64         `json:"bytes_sent"`
	BytesRecv    uint64         `json:"bytes_recv"`
	Duration     string         `json:"duration"`
	Error        string         `json:"error"`

	Policy   string         `json:"policy"`
	Flags    string         `json:"response_flags"`
	TraceID  string         `json:"trace_id"`
	Upstream netip.AddrPort `json:"upstream.local_addr"`
	Start    int64          `json:"start_unix_nano"`
	Schema   int            `json:"schema"`
}

// ParseRecord reads one line of a JSON access log, ours or upstream's. A line that is JSON but of another scope gives
// ErrNotAccess; a schema newer than RecordVersion is an error.
func ParseRecord(b []byte) (Entry, error) {
	var w wireEntry
	var scope struct {
		Scope string `json:"scope"`
	}
	if err := json.Unmarshal(b, &scope); err != nil {
		return Entry{}, fmt.Errorf("parse access log: %w", err)
	}
	if scope.Scope != "access" {
		return Entry{}, ErrNotAccess
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return Entry{}, fmt.Errorf("parse access log: %w", err)
	}
	if w.Schema > RecordVersion {
		return Entry{}, fmt.Errorf("parse access log: schema %d is newer than %d", w.Schema, RecordVersion)
	}
	e := Entry{Message: w.Message, Level: w.Level, Schema: w.Schema, Error: w.Error, Record: Record{
		Time: w.Time, Direction: w.Direction, Service: w.DstService,
		BytesSent: w.BytesSent, BytesRecv: w.BytesRecv,
		Src:    Peer{Addr: w.SrcAddr, Name: w.SrcWorkload, Namespace: w.SrcNamespace, Cluster: w.SrcCluster},
		Dst:    Peer{Addr: w.DstAddr, Name: w.DstWorkload, Namespace: w.DstNamespace, Cluster: w.DstCluster},
		Policy: w.Policy, Flags: w.Flags, TraceID: w.TraceID, Upstream: w.Upstream,
	}}
	return e, e.Record.complete(&w)
}

// complete fills in what needs parsing.
func (r *Record) complete(w *wireEntry) error {
	var errs []error
	for _, id := range []struct {
		text string
		to   *mesh.Identity
	}{{w.SrcIdentity, &r.Src.Identity}, {w.DstIdentity, &r.Dst.Identity}} {
		if id.text == "" {
			continue
		}
		r.Security = MutualTLS
		v, err := mesh.ParseIdentity(id.text)
		errs = append(errs, err)
		*id.to = v
	}
	r.HBONEAddr, _ = netip.ParseAddrPort(w.HBONEAddr) // upstream writes a hostname here for some calls
	if w.Duration != "" {
		d, err := time.ParseDuration(w.Duration)
		errs = append(errs, err)
		r.Duration = d
	}
	if w.Start != 0 {
		r.Start = time.Unix(0, w.Start).UTC()
		if w.Message == MessageComplete {
			r.Duration = w.Time.Sub(r.Start)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("parse access log: %w", err)
	}
	return nil
}

// Trail is the entries of one trace, in the order in which their connections were started.
func Trail(entries []Entry, traceID string) []Entry {
	var out []Entry
	for _, e := range entries {
		if e.Record.TraceID == traceID {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b Entry) int {
		return cmp.Compare(a.Record.Start.UnixNano(), b.Record.Start.UnixNano())
	})
	return out
}
