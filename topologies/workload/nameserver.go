// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// NameServer is a name server for scenarios. It knows the zone lab.test, in which a name says what its answer is like:
//
//	who.lab.test         TXT: the address that the question came from, its protocol and its EDNS payload size
//	<n>.many.lab.test    A: so many addresses
//	<ms>.slow.lab.test   A, after so many milliseconds
//	mute.lab.test        never an answer
//
// UPDATE and NOTIFY are accepted. Other names are passed on to Forward as they are but for the id, as a cache does on a miss;
// without it they do not exist.
type NameServer struct {
	Listen  string // host:port
	Forward string // host:port; "" for none
}

const labZone = "lab.test."

// ParseNameServer reads the arguments of `workload dns`.
func ParseNameServer(args []string, stderr io.Writer) (NameServer, error) {
	var n NameServer
	fs := flag.NewFlagSet("workload dns", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&n.Listen, "listen", ":53", "`address` to serve on, UDP and TCP")
	fs.StringVar(&n.Forward, "forward", "", "`address` of the server that is asked for what is not known here")
	if err := fs.Parse(args); err != nil {
		return n, err
	}
	if fs.NArg() > 0 {
		return n, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return n, nil
}

// Run serves until ctx ends, and calls ready once it does.
func (n NameServer) Run(ctx context.Context, ready func()) error {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(ctx, "tcp", n.Listen)
	if err != nil {
		return err
	}
	p, err := c.ListenPacket(ctx, "udp", n.Listen)
	if err != nil {
		_ = l.Close()
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	servers := []*dns.Server{{Listener: l}, {PacketConn: p, UDPSize: dns.DefaultMsgSize}}
	for _, s := range servers {
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { n.serve(ctx, w, q) })
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		g.Go(func() error {
			if err := s.ActivateAndServe(); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
		select {
		case <-started:
		case <-ctx.Done():
		}
	}
	ready()
	<-ctx.Done()
	for _, s := range servers {
		_ = s.ShutdownContext(ctx) // which has ended: nobody is waited for
	}
	return g.Wait()
}

func (n NameServer) serve(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.Compress, m.RecursionAvailable = true, true
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(dns.DefaultMsgSize, false)
	}
	switch {
	case q.Opcode != dns.OpcodeQuery: // accepted
	case len(q.Question) != 1:
		m.Rcode = dns.RcodeFormatError
	case dns.IsSubDomain(labZone, strings.ToLower(q.Question[0].Name)):
		if !n.answer(ctx, w, q, m) {
			return
		}
	case n.Forward != "":
		c := dns.Client{Timeout: 5 * time.Second, Net: w.LocalAddr().Network()}
		onward := q.Copy()
		onward.Id = dns.Id()
		r, _, err := c.ExchangeContext(ctx, onward, n.Forward)
		if err != nil {
			m.Rcode = dns.RcodeServerFailure
			break
		}
		r.Id = q.Id
		m = r
	default:
		m.Rcode = dns.RcodeNameError
	}
	if w.LocalAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m)
}

// answer fills m from the name; false means that there is none.
func (n NameServer) answer(ctx context.Context, w dns.ResponseWriter, q, m *dns.Msg) bool {
	m.Authoritative = true
	name, kind := q.Question[0].Name, q.Question[0].Qtype
	first, rest, _ := strings.Cut(strings.ToLower(strings.TrimSuffix(name, "."+labZone)), ".")
	number, _ := strconv.Atoi(first)
	add := func(kind uint16, data string) {
		if rr, err := dns.NewRR(name + " 5 IN " + dns.TypeToString[kind] + " " + data); err == nil {
			m.Answer = append(m.Answer, rr)
		}
	}
	switch {
	case first == "mute":
		return false
	case first == "who":
		size := 0
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		host, _, _ := net.SplitHostPort(w.RemoteAddr().String())
		if kind == dns.TypeTXT {
			add(kind, fmt.Sprintf("%q", fmt.Sprintf("%s %s %d", host, w.LocalAddr().Network(), size)))
		}
	case rest == "many" && kind == dns.TypeA:
		for i := range number {
			add(kind, fmt.Sprintf("198.51.%d.%d", 100+i/250, 1+i%250))
		}
	case rest == "slow" && kind == dns.TypeA:
		t := time.NewTimer(time.Duration(number) * time.Millisecond)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return false
		}
		add(kind, "198.51.100.1")
	case rest != "many" && rest != "slow":
		m.Rcode = dns.RcodeNameError
	}
	return true
}
