// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"net/http"
	"net/netip"
	"time"
)

// Result is what the caller prints: one JSON document for the whole command.
type Result struct {
	URL     string        `json:"url"`
	OK      int           `json:"ok"`               // how many calls succeeded
	Failed  int           `json:"failed"`           // how many did not
	Errors  map[Class]int `json:"errors,omitempty"` // failures by class
	Calls   []Call        `json:"calls"`            // in order of completion: the first KeptCalls, then failed ones, up to KeptFailures
	Elapsed time.Duration `json:"elapsedNs"`

	Connections []Connection `json:"connections,omitempty"` // with Options.Ledger, sorted by Opened: up to KeptConnections

	// Servers counts the calls by the pod that answered, "namespace/name", as far as servers say who they are.
	Servers map[string]int `json:"servers,omitempty"`

	// Latencies over all calls that succeeded.
	LatencyP50 time.Duration `json:"latencyP50Ns"`
	LatencyP99 time.Duration `json:"latencyP99Ns"`
	LatencyMax time.Duration `json:"latencyMaxNs"`
}

// How many calls a Result holds at most.
const (
	KeptCalls    = 20
	KeptFailures = 100

	KeptConnections = 50_000
)

// Connection is one TCP connection's life, as the caller saw it.
type Connection struct {
	LocalAddr netip.AddrPort `json:"localAddr"`
	Opened    time.Time      `json:"opened"`          // when the caller began to connect
	Ended     time.Time      `json:"ended"`           // when the caller closed it or noticed that it had been cut
	Calls     int            `json:"calls"`           // that succeeded on it
	Class     Class          `json:"class,omitempty"` // "" if the caller closed it, else why it ended or did not come about
	Error     string         `json:"error,omitempty"`
}

// Cut reports whether it worked and was ended by somebody else.
func (c Connection) Cut() bool { return c.Class != "" && c.Calls > 0 }

// First is the first call; the zero Call if none was made.
func (r Result) First() Call {
	if len(r.Calls) == 0 {
		return Call{}
	}
	return r.Calls[0]
}

// Call is one call; with Options.KeepOpen, one exchange on the kept connection.
type Call struct {
	OK         bool           `json:"ok"`
	Status     int            `json:"status,omitempty"` // HTTP status; with gRPC, the gRPC status, where 0 is good
	Class      Class          `json:"class,omitempty"`  // of the error
	Error      string         `json:"error,omitempty"`
	LocalAddr  netip.AddrPort `json:"localAddr"`
	RemoteAddr netip.AddrPort `json:"remoteAddr"`
	Start      time.Time      `json:"start"`
	Reused     bool           `json:"reused,omitempty"` // the connection was there before
	Connect    time.Duration  `json:"connectNs"`        // until the TCP connection was up
	FirstByte  time.Duration  `json:"firstByteNs"`      // from Start until the first byte came back; 0 if none did
	Latency    time.Duration  `json:"latencyNs"`        // from Start until the end
	BytesSent  int64          `json:"bytesSent"`        // payload, without protocol
	BytesRecv  int64          `json:"bytesRecv"`        // payload, without protocol
	SHA256     string         `json:"sha256,omitempty"` // of the payload received
	Rounds     int            `json:"rounds,omitempty"` // ping-pong exchanges done
	Seen       *Seen          `json:"seen,omitempty"`   // what the server reports, if its protocol lets it

	held bool // it was answered, and kept as Options.Hold says
}

// Class sorts errors so that they can be counted without reading their text.
type Class string

// Classes of errors.
const (
	ClassRefused  Class = "refused"  // connection refused
	ClassReset    Class = "reset"    // connection reset, or a broken pipe
	ClassTimeout  Class = "timeout"  // nothing happened in time
	ClassEOF      Class = "eof"      // the peer closed before all was there
	ClassResolve  Class = "resolve"  // the name has no address
	ClassNoRoute  Class = "noroute"  // network or host unreachable
	ClassTLS      Class = "tls"      // handshake failed
	ClassStatus   Class = "status"   // the answer was an error
	ClassMismatch Class = "mismatch" // bytes differ from what they had to be
	ClassOther    Class = "other"

	ClassPermission Class = "permission" // the kernel did not let the caller
)

// Seen is what a server saw of one call. HTTP and gRPC servers answer with it; the server-first TCP server's banner is
// one line of it; TCP and UDP echo servers send one line of it when asked (see the Ask constants).
type Seen struct {
	RemoteAddr netip.AddrPort `json:"remoteAddr"` // the peer, as the server's socket names it
	LocalAddr  netip.AddrPort `json:"localAddr"`
	Protocol   string         `json:"protocol"` // the listener's kind: http, h2c, grpc, tls, tcp, tcp-server-first, udp, ws
	Host       string         `json:"host,omitempty"`
	Proto      string         `json:"proto,omitempty"` // HTTP/1.1, HTTP/2.0
	Method     string         `json:"method,omitempty"`
	Path       string         `json:"path,omitempty"`
	Headers    http.Header    `json:"headers,omitempty"`
	Bytes      int64          `json:"bytes,omitempty"`  // of the request's body
	SHA256     string         `json:"sha256,omitempty"` // of the request's body
	Workload   string         `json:"workload"`         // the pod's name
	Namespace  string         `json:"namespace"`        // the pod's namespace
	IP         string         `json:"ip"`               // the pod's first address
	Ended      Class          `json:"ended,omitempty"`  // how a watched connection came to its end: ClassEOF for a FIN
	Started    time.Time      `json:"started"`          // when the server began: another time is another process
}
