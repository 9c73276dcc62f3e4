// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Mesh is the mesh as the served pod sees it.
type Mesh interface {
	// Now is what is known now. self is the pod itself; nil if the mesh does not know it (yet).
	Now() (n Names, self *mesh.Workload)
	// Await waits until the pod itself is known, for as long as it sees fit.
	Await(ctx context.Context) (Names, *mesh.Workload, error)
}

// Transport is the pod's network, around its redirection.
type Transport interface {
	// Origin is where the datagram of client that arrived at local had been sent to.
	Origin(client, local netip.AddrPort) (netip.AddrPort, error)
	// DialUDP and DialTCP connect from the pod, by packets that are not redirected to this proxy again.
	DialUDP(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error)
	DialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error)
	// Fallback are the resolvers for a query whose destination cannot be found out.
	Fallback() []netip.AddrPort
}

// Config is what a Server needs. Mesh and Transport must be set; of the rest zero means the default that is named.
type Config struct {
	Zone
	Mesh      Mesh
	Transport Transport
	// Observe, if set, is told of every query when it is done with. It must not block.
	Observe func(Event)
	Log     *slog.Logger

	// Attempt is how long an upstream has for an answer before it is asked once more, and then is given up; 2 s.
	Attempt time.Duration
	// Idle is how long a client's TCP connection may lie idle; 10 s.
	Idle time.Duration
	// Budget bounds what all servers of a process forward at a time; nil: only the server's own bound.
	Budget *Budget
}

// Bounds of one server. A query above them is answered SERVFAIL at once: it costs nothing, and its client goes on.
const (
	maxForwarded = 256 // queries that wait for an upstream, or for the pod to be known
	maxConns     = 64  // clients' TCP connections
	maxPipelined = 16  // queries of one TCP connection at a time; the others wait to be read
)

// Event tells of a query.
type Event struct {
	Self     *mesh.Workload // nil: not known
	Name     string         // as asked; "" if it could not be read
	Type     string         // "A"; for other operations than QUERY, its name
	TCP      bool
	Known    bool           // the mesh has the name
	Upstream netip.AddrPort // who was asked last; invalid: nobody
	// Forwarded says that it was passed on, or should have been; Took how long that was.
	Forwarded bool
	Took      time.Duration
	Rcode     int
	Answers   int
	Err       error // why there is no answer
}

// Server answers one pod's queries. It owns the sockets that it serves only while it serves them; all methods may be called
// concurrently.
type Server struct {
	cfg     Config
	flights flights
	answers answers
	slots   chan struct{}
	conns   atomic.Int32
	warned  atomic.Int64 // when a loop was last logged, as Unix seconds
}

// New makes a server. It does no I/O.
func New(cfg Config) *Server {
	cfg.Attempt = cmp.Or(cfg.Attempt, 2*time.Second)
	cfg.Idle = cmp.Or(cfg.Idle, 10*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, slots: make(chan struct{}, maxForwarded)}
}

// ServePackets answers what arrives at c until a read deadline passes or c is closed. It returns when every query that it
// has read is done with; the end of ctx cuts those short. c stays the caller's to close.
func (s *Server) ServePackets(ctx context.Context, c *net.UDPConn) {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	in, err := newReceiver(c)
	if err != nil {
		return // it is closed
	}
	send := func(b []byte, to netip.AddrPort) {
		if len(b) > 0 {
			_, _ = c.WriteToUDPAddrPort(b, to) // to a client that does not wait any more, or asks again
		}
	}
	for {
		b, n, from, err := in.receive()
		if err != nil {
			if ended(err) {
				return
			}
			continue // an earlier answer was refused
		}
		q := query{raw: (*b)[:n], client: from, local: local}
		out := take()
		answer, done := s.quick(&q, *out)
		switch {
		case done:
			send(answer, from)
		case s.enter():
			q.raw = append([]byte(nil), q.raw...)
			waiting.Go(func() {
				defer s.leave()
				send(s.slow(ctx, &q), from)
			})
		default:
			send(s.refuse(&q, errBusy), from)
		}
		give(out)
		give(b)
	}
}

func (s *Server) enter() bool {
	if !s.cfg.Budget.take() {
		return false
	}
	select {
	case s.slots <- struct{}{}:
		return true
	default:
		s.cfg.Budget.give()
		return false
	}
}

func (s *Server) leave() {
	<-s.slots
	s.cfg.Budget.give()
}

// quick does all that needs no waiting. If done, answer is to be sent, unless it is empty: it lies in buf or in memory of its own.
func (s *Server) quick(q *query, buf []byte) (answer []byte, done bool) {
	if done, answer := q.parse(); done {
		return answer, true
	}
	names, self := s.cfg.Mesh.Now()
	if self == nil {
		return nil, false
	}
	return s.fromMesh(q, names, self, buf)
}

// fromMesh answers a query for an address of a name that the mesh knows.
func (s *Server) fromMesh(q *query, names Names, self *mesh.Workload, buf []byte) (answer []byte, done bool) {
	q.event.Self = self
	if q.msg.Opcode != dns.OpcodeQuery || q.name == "" {
		return nil, false
	}
	f, ok := s.cfg.find(names, self.Namespace, q.name)
	q.event.Known = ok
	if !ok || !isAddress(q.msg.Question[0]) {
		return nil, false
	}
	r := s.cfg.answerKnown(names, f, q.msg)
	out, err := pack(r, limit(q.msg, q.tcp), buf)
	if err != nil { // an address or name that cannot be written: nothing that a decoder lets through
		return s.refuse(q, err), true
	}
	q.event.Answers = len(r.Answer)
	s.observe(q)
	return out, true
}

// slow does what is left for a query that quick has not done with.
func (s *Server) slow(ctx context.Context, q *query) []byte {
	if q.event.Self == nil {
		names, self, err := s.cfg.Mesh.Await(ctx)
		if err != nil {
			return s.refuse(q, &unreadyError{err})
		}
		if answer, done := s.fromMesh(q, names, self, nil); done {
			return answer
		}
	}
	start := time.Now()
	q.event.Forwarded = true
	answer, err := s.forward(ctx, q)
	q.event.Took = time.Since(start)
	if err != nil {
		return s.refuse(q, err)
	}
	answer = q.restore(answer)
	q.event.Rcode, q.event.Answers = int(answer[3]&0xf), int(answer[6])<<8|int(answer[7])
	s.observe(q)
	return answer
}

// refuse is the answer to a query that cannot be answered for the reason err.
func (s *Server) refuse(q *query, err error) []byte {
	q.event.Err, q.event.Rcode = err, dns.RcodeServerFailure
	s.warn(q, err)
	s.observe(q)
	out, packErr := pack(failed(q.msg, q.event.Rcode, err), limit(q.msg, q.tcp), nil)
	if packErr != nil {
		return nil
	}
	return out
}

func (s *Server) observe(q *query) {
	if s.cfg.Observe != nil {
		s.cfg.Observe(q.event)
	}
}

// Budget bounds how many queries are forwarded at a time.
type Budget struct {
	most int32
	now  atomic.Int32
}

// NewBudget makes a budget of that many queries.
func NewBudget(most int) *Budget { return &Budget{most: int32(most)} }

func (b *Budget) take() bool {
	if b == nil {
		return true
	}
	if b.now.Add(1) > b.most {
		b.now.Add(-1)
		return false
	}
	return true
}

func (b *Budget) give() {
	if b != nil {
		b.now.Add(-1)
	}
}
