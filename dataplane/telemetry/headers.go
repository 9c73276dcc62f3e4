// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Names of the headers that carry telemetry on a CONNECT request or its response.
const (
	HeaderBaggage     = "baggage"
	HeaderForwarded   = "forwarded"
	HeaderTraceparent = "traceparent"
)

// Baggage is what a proxy tells its peer about its workload. It is for telemetry; nothing may be authorised by it.
type Baggage struct {
	Cluster, Namespace, Workload string
	Type                         mesh.WorkloadType
	Service, Revision            string // canonical name and revision
	Region, Zone                 string
}

// BaggageOf describes w.
func BaggageOf(w *mesh.Workload) Baggage {
	return Baggage{
		Cluster: w.ClusterID, Namespace: w.Namespace, Workload: w.WorkloadName, Type: w.Type,
		Service: w.CanonicalName, Revision: w.CanonicalRevision, Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
}

// Peer is the peer that b describes, seen at addr, with the identity that its certificate proved: that goes before what it
// says of its namespace.
func (b Baggage) Peer(addr netip.AddrPort, id mesh.Identity) Peer {
	return Peer{
		Addr: addr, Workload: b.Workload, Namespace: id.Namespace, Cluster: b.Cluster, Identity: id,
		CanonicalName: b.Service, CanonicalRevision: b.Revision, Region: b.Region, Zone: b.Zone, Claimed: true,
	}
}

// String is the header's value; empty fields are left out.
func (b Baggage) String() string {
	var sb strings.Builder
	sb.Grow(192)
	put := func(k, v string) {
		if v == "" {
			return
		}
		if sb.Len() > 0 {
			sb.WriteByte(',')
		}
		sb.WriteString(k)
		sb.WriteByte('=')
		sb.WriteString(escapeBaggage(v))
	}
	put("k8s.cluster.name", b.Cluster)
	put("k8s.namespace.name", b.Namespace)
	put("k8s."+b.Type.String()+".name", b.Workload)
	put("service.name", b.Service)
	put("service.version", b.Revision)
	put("cloud.region", b.Region)
	put("cloud.availability_zone", b.Zone)
	return sb.String()
}

// escapeBaggage percent-encodes what would end a member or the header. Kubernetes names never need it.
func escapeBaggage(v string) string {
	unsafe := func(c rune) bool {
		return c <= ' ' || c >= 0x7f || c == ',' || c == ';' || c == '=' || c == '%' || c == '"' || c == '\\'
	}
	if strings.IndexFunc(v, unsafe) < 0 {
		return v
	}
	var sb strings.Builder
	for i := range len(v) {
		if unsafe(rune(v[i])) {
			fmt.Fprintf(&sb, "%%%02X", v[i])
		} else {
			sb.WriteByte(v[i])
		}
	}
	return sb.String()
}

// maxBaggageValue is the longest name that Kubernetes has.
const maxBaggageValue = 253

// ParseBaggage reads the values of all baggage headers of a message. It is lenient: members that it does not know or
// cannot read are skipped, a later one wins.
func ParseBaggage(values ...string) Baggage {
	var b Baggage
	for _, v := range values {
		for member := range strings.SplitSeq(v, ",") {
			k, val, ok := strings.Cut(member, "=")
			if !ok {
				continue
			}
			val, _, _ = strings.Cut(val, ";") // W3C: properties follow
			val, err := url.PathUnescape(strings.TrimSpace(val))
			if err != nil || len(val) > maxBaggageValue || !utf8.ValidString(val) {
				continue
			}
			b.set(strings.TrimSpace(k), val)
		}
	}
	return b
}

func (b *Baggage) set(k, v string) {
	switch k {
	case "k8s.cluster.name":
		b.Cluster = v
	case "k8s.namespace.name":
		b.Namespace = v
	case "k8s.deployment.name":
		b.Workload, b.Type = v, mesh.Deployment
	case "k8s.cronjob.name":
		b.Workload, b.Type = v, mesh.CronJob
	case "k8s.pod.name":
		b.Workload, b.Type = v, mesh.Pod
	case "k8s.job.name":
		b.Workload, b.Type = v, mesh.Job
	case "service.name":
		b.Service = v
	case "service.version":
		b.Revision = v
	case "cloud.region":
		b.Region = v
	case "cloud.availability_zone":
		b.Zone = v
	}
}

// Traceparent is a W3C trace context: one trace per application connection, one span per hop.
type Traceparent struct {
	Trace [16]byte
	Span  [8]byte
	Flags byte
}

// NewTraceparent begins a trace. Ids only have to be distinct, so they come from the fast random source.
func NewTraceparent() Traceparent {
	var t Traceparent
	for t.Trace == [16]byte{} {
		putUint64(t.Trace[:8], rand.Uint64())
		putUint64(t.Trace[8:], rand.Uint64())
	}
	return t.Next()
}

// Next is the same trace with a span of its own.
func (t Traceparent) Next() Traceparent {
	for {
		putUint64(t.Span[:], rand.Uint64())
		if t.Span != [8]byte{} {
			return t
		}
	}
}

func putUint64(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (8 * i))
	}
}

// IsZero reports whether t is no trace.
func (t Traceparent) IsZero() bool { return t.Trace == [16]byte{} }

// TraceID is 32 hex digits; "" for no trace.
func (t Traceparent) TraceID() string {
	if t.IsZero() {
		return ""
	}
	return hex.EncodeToString(t.Trace[:])
}

// String is the header's value.
func (t Traceparent) String() string {
	var b [55]byte
	out := append(b[:0], "00-"...)
	out = hex.AppendEncode(out, t.Trace[:])
	out = append(out, '-')
	out = hex.AppendEncode(out, t.Span[:])
	out = append(out, '-')
	out = hex.AppendEncode(out, []byte{t.Flags})
	return string(out)
}

// ErrTraceparent is returned for a header that is no valid trace context.
var ErrTraceparent = errors.New("want 00-<32 hex>-<16 hex>-<2 hex>")

// ParseTraceparent reads a header's value (W3C Trace Context, version 00; of later versions the part that 00 knows).
func ParseTraceparent(s string) (Traceparent, error) {
	t, ok := parseTraceparent(s)
	if !ok {
		return Traceparent{}, fmt.Errorf("parse traceparent %q: %w", s, ErrTraceparent)
	}
	return t, nil
}

func parseTraceparent(s string) (t Traceparent, ok bool) {
	var version, flags [1]byte
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:55] != strings.ToLower(s[:55]) {
		return t, false
	}
	for _, f := range [...]struct {
		to   []byte
		text string
	}{{version[:], s[:2]}, {t.Trace[:], s[3:35]}, {t.Span[:], s[36:52]}, {flags[:], s[53:55]}} {
		if _, err := hex.Decode(f.to, []byte(f.text)); err != nil {
			return t, false
		}
	}
	later := version[0] != 0 && version[0] != 0xff && (len(s) == 55 || s[55] == '-')
	t.Flags = flags[0]
	return t, (version[0] == 0 && len(s) == 55 || later) && t.Trace != [16]byte{} && t.Span != [8]byte{}
}

// FormatForwarded is the forwarded header's value for a client and, if host is not empty, the service that it asked for.
func FormatForwarded(client netip.AddrPort, host string) string {
	var b [128]byte
	out := append(b[:0], `for="`...)
	out = client.AppendTo(out)
	out = append(out, '"')
	if host != "" {
		out = append(out, ";host="...)
		out = append(out, host...)
	}
	return string(out)
}

// ParseForwarded reads the first element of a forwarded header (RFC 7239, section 4): the client, whose port may be
// missing (0), and the host. Either may be absent; a malformed element is an error.
func ParseForwarded(s string) (client netip.AddrPort, host string, err error) {
	element, _, _ := strings.Cut(s, ",")
	for pair := range strings.SplitSeq(element, ";") {
		k, v, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok {
			return netip.AddrPort{}, "", fmt.Errorf("parse forwarded %q: no value in %q", s, pair)
		}
		v = strings.TrimSuffix(strings.TrimPrefix(v, `"`), `"`)
		switch strings.ToLower(k) {
		case "for":
			if client, err = parseNode(v); err != nil {
				return netip.AddrPort{}, "", fmt.Errorf("parse forwarded %q: %w", s, err)
			}
		case "host":
			host = v
		}
	}
	return client, host, nil
}

func parseNode(v string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(v); err == nil {
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(v, "["), "]"))
	return netip.AddrPortFrom(a, 0), err
}
