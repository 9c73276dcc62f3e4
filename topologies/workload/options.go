// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// DefaultTimeout bounds one call if Options.Timeout is 0.
const DefaultTimeout = 10 * time.Second

// Options say how to call. The zero value makes one call on one connection and reads its whole answer.
type Options struct {
	Count       int           // calls to make; 0 means 1, or with Duration as many as fit
	Concurrency int           // calls at a time; 0 means 1
	Interval    time.Duration // from one call's start to the next one's; 0 means at once
	Duration    time.Duration // stop starting calls after this; 0 means Count decides
	UntilEOF    bool          // of the command: stop starting calls when standard input ends; it sets Stop
	Timeout     time.Duration // for one call; 0 means DefaultTimeout

	Stop <-chan struct{} // stop starting calls once it is closed; nil: never

	// Ledger, TCP: list every connection, with when it began and how it ended, in Result.Connections.
	Ledger   bool
	KeepOpen bool // reuse one connection per concurrent caller, and open a new one only after a failure
	// HalfClose, TCP: send Size bytes, close the sending side, and only then receive Download bytes to the end.
	HalfClose bool
	// PeerHalfClose, TCP: receive Download bytes to the end, and only then send Size bytes.
	PeerHalfClose bool
	// Reset, TCP: send Size bytes, reset the connection, and ask on another one how the server saw it end (Seen.Ended).
	Reset bool
	// PeerReset, TCP: ask for Download bytes and a reset; the call fails with that.
	PeerReset bool
	Silent    time.Duration // TCP: stay silent for so long after connecting, before the first byte
	// Hold, TCP: keep a connection that the server has answered on, without a word, until Stop is closed; without Stop, until
	// every call of Count has been answered or has failed, so that all that can be there at once are.
	Hold     bool
	PingPong int   // TCP, UDP, WebSocket, gRPC: so many exchanges of Size bytes, each answered before the next
	Size     int64 // bytes to send: HTTP body (makes it a POST), TCP, WebSocket and gRPC message, datagram
	Download int64 // bytes to ask for: HTTP, at /size/<n>; TCP, with a half-close or PeerReset

	HTTP2  bool     // https: offer only h2
	Method string   // HTTP: overrides GET or POST
	Header []string // HTTP: "Name: value"
	MSS    int      // TCP: the largest segment to announce and to send; 0 is the kernel's
	Family int      // 4 or 6: use only addresses of this family; 0: the first that the name has

	// What an honest application has no use for: see escape.
	Mark uint32     // SO_MARK of the caller's sockets; 0 sets none
	Bind netip.Addr // source address, which need not be the host's own; the zero Addr leaves it to the kernel
}

// Args is the command line that ParseCall reads back to o and url.
func (o Options) Args(url string) []string {
	var a []string
	num := func(name string, v int64) {
		if v != 0 {
			a = append(a, "--"+name, strconv.FormatInt(v, 10))
		}
	}
	dur := func(name string, v time.Duration) {
		if v != 0 {
			a = append(a, "--"+name, v.String())
		}
	}
	set := func(name string, v bool) {
		if v {
			a = append(a, "--"+name)
		}
	}
	num("count", int64(o.Count))
	num("concurrency", int64(o.Concurrency))
	dur("interval", o.Interval)
	dur("duration", o.Duration)
	set("until-eof", o.UntilEOF)
	dur("timeout", o.Timeout)
	set("ledger", o.Ledger)
	set("keep-open", o.KeepOpen)
	set("half-close", o.HalfClose)
	set("peer-half-close", o.PeerHalfClose)
	set("reset", o.Reset)
	set("peer-reset", o.PeerReset)
	dur("silent", o.Silent)
	set("hold", o.Hold)
	num("ping-pong", int64(o.PingPong))
	num("size", o.Size)
	num("download", o.Download)
	set("http2", o.HTTP2)
	if o.Method != "" {
		a = append(a, "--method", o.Method)
	}
	for _, h := range o.Header {
		a = append(a, "--header", h)
	}
	num("mss", int64(o.MSS))
	num("family", int64(o.Family))
	num("mark", int64(o.Mark))
	if o.Bind.IsValid() {
		a = append(a, "--bind", o.Bind.String())
	}
	return append(a, url)
}

// Command is the command line of a process that makes these calls, where the binary is called "workload".
func Command(url string, o Options) []string {
	return append([]string{"workload", "call"}, o.Args(url)...)
}

// ParseCall reads the arguments of `workload call`. Messages about usage go to stderr.
func ParseCall(args []string, stderr io.Writer) (Options, string, error) {
	var o Options
	fs := flag.NewFlagSet("workload call", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		_, _ = fmt.Fprintln(stderr, "usage: workload call [flags] URL\n\nURL: http, https, h2c, grpc, ws, wss, tcp, tcp-first or udp.")
		fs.PrintDefaults()
	}
	fs.IntVar(&o.Count, "count", 0, "calls to make (default 1, or with --duration as many as fit)")
	fs.IntVar(&o.Concurrency, "concurrency", 0, "calls at a time (default 1)")
	fs.DurationVar(&o.Interval, "interval", 0, "from one call's start to the next one's")
	fs.DurationVar(&o.Duration, "duration", 0, "stop starting calls after this")
	fs.BoolVar(&o.UntilEOF, "until-eof", false, "stop starting calls when standard input ends")
	fs.DurationVar(&o.Timeout, "timeout", 0, "for one call (default 10s)")
	fs.BoolVar(&o.Ledger, "ledger", false, "tcp: list every connection with its end")
	fs.BoolVar(&o.KeepOpen, "keep-open", false, "reuse the connection until a call fails")
	fs.BoolVar(&o.HalfClose, "half-close", false, "tcp: send all, close the sending side, read to the end")
	fs.BoolVar(&o.PeerHalfClose, "peer-half-close", false, "tcp: read to the end, then send")
	fs.BoolVar(&o.Reset, "reset", false, "tcp: send, reset, and ask the server how it saw that")
	fs.BoolVar(&o.PeerReset, "peer-reset", false, "tcp: receive, and be reset by the server")
	fs.DurationVar(&o.Silent, "silent", 0, "tcp: stay silent for so long before the first byte")
	fs.BoolVar(&o.Hold, "hold", false, "tcp: keep a connection that was answered until standard input ends, or all are decided")
	fs.IntVar(&o.PingPong, "ping-pong", 0, "exchanges of --size bytes, each answered before the next")
	fs.Int64Var(&o.Size, "size", 0, "bytes to send")
	fs.Int64Var(&o.Download, "download", 0, "bytes to ask for (http; tcp with a half-close or --peer-reset)")
	fs.BoolVar(&o.HTTP2, "http2", false, "https: offer only h2")
	fs.StringVar(&o.Method, "method", "", "http: method (default GET, with --size POST)")
	fs.Func("header", "http: `Name: value`, repeatable", func(s string) error {
		if name, _, ok := strings.Cut(s, ":"); !ok || name == "" {
			return errors.New("want Name: value")
		}
		o.Header = append(o.Header, s)
		return nil
	})
	fs.IntVar(&o.MSS, "mss", 0, "largest TCP segment (default the kernel's)")
	fs.IntVar(&o.Family, "family", 0, "4 or 6: use only addresses of this family")
	fs.Func("mark", "`number`: mark the packets, as a proxy would (SO_MARK)", func(s string) error {
		n, err := strconv.ParseUint(s, 0, 32)
		o.Mark = uint32(n)
		return err
	})
	fs.Func("bind", "`address` to call from, the host's own or not (IP_TRANSPARENT)", func(s string) (err error) {
		o.Bind, err = netip.ParseAddr(s)
		return err
	})
	if err := fs.Parse(args); err != nil {
		return o, "", err
	}
	if fs.NArg() != 1 {
		fs.Usage()
		return o, "", fmt.Errorf("want one URL, got %d arguments", fs.NArg())
	}
	return o, fs.Arg(0), o.validate(fs.Arg(0))
}

func (o Options) validate(url string) error {
	if _, err := parseTarget(url); err != nil {
		return err
	}
	switch {
	case o.Count < 0 || o.Concurrency < 0 || o.Size < 0 || o.Download < 0 || o.PingPong < 0:
		return errors.New("numbers must not be negative")
	case o.Family != 0 && o.Family != 4 && o.Family != 6:
		return fmt.Errorf("--family %d: want 4 or 6", o.Family)
	case o.Ledger && !strings.HasPrefix(url, "tcp"):
		return errors.New("--ledger: only tcp connections are listed")
	case o.Hold && (!strings.HasPrefix(url, "tcp") || o.KeepOpen || o.Count != o.Concurrency):
		return errors.New("--hold: only tcp connections that are all there at once, --count of them and as many at a time, can be held")
	case moreThanOne(o.HalfClose, o.PeerHalfClose, o.Reset, o.PeerReset, o.PingPong > 0):
		return errors.New("--half-close, --peer-half-close, --reset, --peer-reset and --ping-pong exclude each other")
	case (o.HalfClose || o.PeerHalfClose || o.Reset || o.PeerReset) && o.KeepOpen:
		return errors.New("a connection that is closed or reset cannot be kept open")
	case o.MSS < 0 || o.MSS > 65535:
		return fmt.Errorf("--mss %d: want at most 65535", o.MSS)
	case o.Interval < 0 || o.Duration < 0 || o.Timeout < 0 || o.Silent < 0:
		return errors.New("durations must not be negative")
	}
	return nil
}

func moreThanOne(conds ...bool) bool {
	n := 0
	for _, c := range conds {
		if c {
			n++
		}
	}
	return n > 1
}

func (o Options) timeout() time.Duration {
	if o.Timeout > 0 {
		return o.Timeout
	}
	return DefaultTimeout
}

// defaultPing is the size of an exchanged message if Size is 0.
const defaultPing = 64

func (o Options) pingSize() int64 {
	if o.Size > 0 {
		return o.Size
	}
	return defaultPing
}

// rounds is how many messages one call exchanges. On a fresh connection the server's report is an answer already; on a
// kept one there must be some exchange, or the call would prove nothing.
func (o Options) rounds(fresh bool) int {
	if o.PingPong == 0 && (o.Size > 0 || !fresh) {
		return 1
	}
	return o.PingPong
}
