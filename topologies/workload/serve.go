// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Bind is the address that a port is bound to.
type Bind string

// Binds, as they stand behind the '@' of a port on the command line.
const (
	BindAny       Bind = "any"       // the wildcard, both families
	BindPod       Bind = "pod"       // every address of the host except loopback and link-local ones
	BindLocalhost Bind = "localhost" // 127.0.0.1 and ::1
)

// Port is one listening port; number 0 lets the kernel choose.
type Port struct {
	Number uint16
	Bind   Bind
}

// ParsePort reads "8080", "8080@any", "8080@pod" or "8080@localhost".
func ParsePort(s string) (Port, error) {
	num, bind, has := strings.Cut(s, "@")
	n, err := strconv.ParseUint(num, 10, 16)
	if err != nil {
		return Port{}, fmt.Errorf("port %q: want a number, or number@bind", s)
	}
	p := Port{Number: uint16(n), Bind: BindAny}
	if has {
		p.Bind = Bind(bind)
	}
	switch p.Bind {
	case BindAny, BindPod, BindLocalhost:
		return p, nil
	}
	return Port{}, fmt.Errorf("port %q: bind %q is not any, pod or localhost", s, bind)
}

// Protocols of listeners, named like the flags of `workload serve`.
const (
	HTTP           = "http"
	H2C            = "h2c"
	GRPC           = "grpc"
	TLS            = "tls"
	TCP            = "tcp"
	TCPServerFirst = "tcp-server-first"
	UDP            = "udp"
)

var protocols = []string{HTTP, H2C, GRPC, TLS, TCP, TCPServerFirst, UDP}

// Config of a Server.
type Config struct {
	Ports     map[string][]Port // by protocol
	Workload  string            // what Seen reports of the pod
	Namespace string
	IP        string
	Unready   bool // of the command: never print "ready", by which labs without a kubelet tell that a pod is
	Log       *slog.Logger
}

// ParseServe reads the arguments of `workload serve`. Messages about usage go to stderr.
func ParseServe(args []string, stderr io.Writer) (Config, error) {
	c := Config{Ports: map[string][]Port{}}
	fs := flag.NewFlagSet("workload serve", flag.ContinueOnError)
	fs.SetOutput(stderr)
	for _, proto := range protocols {
		fs.Func(proto, "`port` or port@any|pod|localhost to serve "+proto+" on, repeatable", func(s string) error {
			p, err := ParsePort(s)
			c.Ports[proto] = append(c.Ports[proto], p)
			return err
		})
	}
	fs.BoolVar(&c.Unready, "unready", false, "serve, and never print \"ready\"")
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	if fs.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return c, nil
}

// Server is the echo server.
type Server struct {
	cfg     Config
	started time.Time
	group   sync.WaitGroup // handlers
	report  reports

	ready chan struct{}

	mu     sync.Mutex
	addrs  map[string][]net.Addr // guarded by mu; by protocol, once bound
	closed bool                  // guarded by mu; no handler starts any more
}

// NewServer makes a server; nothing is bound before Run.
func NewServer(cfg Config) *Server {
	return &Server{cfg: cfg, started: time.Now().UTC(), ready: make(chan struct{}), addrs: map[string][]net.Addr{}, report: newReports()}
}

// Ready is closed once every port is bound.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addrs are the addresses bound for a protocol, in the order of Config.Ports. Empty before Ready.
func (s *Server) Addrs(protocol string) []net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs[protocol]
}

// Run binds every port, serves until ctx ends, and returns when every connection is closed. Without ports it only
// waits: that is a pod that calls and is not called.
func (s *Server) Run(ctx context.Context) error {
	b := binder{}
	defer b.close()
	listeners, packets, err := s.bind(ctx, &b)
	if err != nil {
		return err
	}
	close(s.ready)
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error { return s.serve(ctx, l) })
	}
	for _, p := range packets {
		g.Go(func() error { return s.serveUDP(ctx, p) })
	}
	g.Go(func() error {
		<-ctx.Done()
		return nil
	})
	err = g.Wait()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.group.Wait()
	return err
}

// enter counts a handler in, unless Run is already waiting for the last one. The caller owes a group.Done.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.group.Add(1)
	return true
}

type listener struct {
	net.Listener
	protocol string
}

func (s *Server) bind(ctx context.Context, b *binder) (ls []listener, ps []*net.UDPConn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, proto := range protocols {
		for _, p := range s.cfg.Ports[proto] {
			if proto == UDP {
				conns, err := b.udp(ctx, p)
				if err != nil {
					return nil, nil, err
				}
				for _, c := range conns {
					ps = append(ps, c)
					s.addrs[proto] = append(s.addrs[proto], c.LocalAddr())
				}
				continue
			}
			bound, err := b.tcp(ctx, p)
			if err != nil {
				return nil, nil, err
			}
			for _, l := range bound {
				ls = append(ls, listener{l, proto})
				s.addrs[proto] = append(s.addrs[proto], l.Addr())
			}
		}
	}
	return ls, ps, nil
}

func (s *Server) serve(ctx context.Context, l listener) error {
	l.Listener = &patient{Listener: l.Listener, done: ctx.Done(), log: s.cfg.Log}
	var err error
	switch l.protocol {
	case TCP, TCPServerFirst:
		err = s.serveTCP(ctx, l)
	default:
		err = s.serveHTTP(ctx, l)
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve %s on %s: %w", l.protocol, l.Addr(), err)
}

func (s *Server) seen(protocol string, remote, local net.Addr) Seen {
	return Seen{
		RemoteAddr: addrPort(remote), LocalAddr: addrPort(local), Protocol: protocol,
		Workload: s.cfg.Workload, Namespace: s.cfg.Namespace, IP: s.cfg.IP, Started: s.started,
	}
}

// debug notes an error that ended one connection: the caller reports it, and here it is mostly the caller's doing.
func (s *Server) debug(protocol string, err error) {
	if err != nil && s.cfg.Log != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		s.cfg.Log.Debug("connection ended", "protocol", protocol, "error", err)
	}
}
