// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// maxChain bounds how far a CNAME is followed.
const maxChain = 8

// DNS is the cluster's DNS server. It is authoritative for everything: a lab has no outside to forward to.
type DNS struct {
	zone atomic.Pointer[Zone]
	log  *slog.Logger
}

// NewDNS makes a server that knows nothing yet. log may be nil.
func NewDNS(log *slog.Logger) *DNS {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &DNS{log: log}
	d.zone.Store(NewZone(&source.Objects{}, "cluster.local", nil))
	return d
}

// Update replaces what the server knows. It may be called at any time.
func (d *DNS) Update(z *Zone) { d.zone.Store(z) }

// Serve answers on the given sockets until ctx ends; then it closes them and returns nil. A socket that fails ends it
// with an error.
func (d *DNS) Serve(ctx context.Context, tcp []net.Listener, udp []net.PacketConn) error {
	g, ctx := errgroup.WithContext(ctx)
	serve := func(s *dns.Server, where net.Addr) {
		s.Handler = dns.HandlerFunc(d.handle)
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		g.Go(func() error {
			defer close(ended)
			if err := s.ActivateAndServe(); err != nil && ctx.Err() == nil {
				return fmt.Errorf("serve DNS on %s: %w", where, err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			select {
			case <-started:
				return s.ShutdownContext(ctx) // ctx has ended: idle clients are cut
			case <-ended: // it never started
				return nil
			}
		})
	}
	for _, l := range tcp {
		serve(&dns.Server{Listener: l, IdleTimeout: func() time.Duration { return 30 * time.Second }}, l.Addr())
	}
	for _, c := range udp {
		serve(&dns.Server{PacketConn: c}, c.LocalAddr())
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func (d *DNS) handle(w dns.ResponseWriter, req *dns.Msg) {
	resp := d.zone.Load().Answer(req)
	limit := dns.MaxMsgSize
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		limit = dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			limit = max(limit, int(opt.UDPSize()))
		}
	}
	resp.Truncate(limit)
	if err := w.WriteMsg(resp); err != nil {
		d.log.Debug("answer not sent", "client", w.RemoteAddr(), "error", err)
	}
}

// Answer answers one query. Names are compared without case and echoed as they were asked.
func (z *Zone) Answer(req *dns.Msg) *dns.Msg {
	resp := new(dns.Msg)
	resp.SetReply(req)
	resp.Authoritative, resp.RecursionAvailable, resp.Compress = true, true, true
	if opt := req.IsEdns0(); opt != nil {
		resp.SetEdns0(opt.UDPSize(), false)
	}
	switch {
	case req.Opcode != dns.OpcodeQuery:
		resp.Rcode = dns.RcodeNotImplemented
		return resp
	case len(req.Question) != 1:
		resp.Rcode = dns.RcodeFormatError
		return resp
	case req.Question[0].Qclass != dns.ClassINET:
		resp.Rcode = dns.RcodeRefused
		return resp
	}
	q := req.Question[0]
	resp.Answer, resp.Rcode = z.lookup(q.Name, q.Qtype)
	if len(resp.Answer) == 0 {
		resp.Ns = []dns.RR{z.soa()}
	}
	return resp
}

func (z *Zone) lookup(name string, qtype uint16) ([]dns.RR, int) {
	var answer []dns.RR
	owner := name
	for range maxChain {
		records, ok := z.records[strings.ToLower(owner)]
		if !ok {
			if len(answer) > 0 {
				return answer, dns.RcodeSuccess // the alias is there, its target is not ours to deny
			}
			return nil, dns.RcodeNameError
		}
		found := ofType(records, qtype, owner)
		if len(found) > 0 {
			return append(answer, found...), dns.RcodeSuccess
		}
		alias := ofType(records, dns.TypeCNAME, owner)
		if len(alias) == 0 {
			return answer, dns.RcodeSuccess
		}
		answer = append(answer, alias[0])
		owner = alias[0].(*dns.CNAME).Target
	}
	return nil, dns.RcodeServerFailure
}

// ofType copies the records of a type under the name as it was asked, in random order: clients take the first.
func ofType(records []dns.RR, qtype uint16, owner string) []dns.RR {
	var out []dns.RR
	for _, rr := range records {
		if qtype == dns.TypeANY || rr.Header().Rrtype == qtype {
			rr = dns.Copy(rr)
			rr.Header().Name = owner
			out = append(out, rr)
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// soa tells for how long a denial may be kept.
func (z *Zone) soa() dns.RR {
	return &dns.SOA{
		Hdr: header(z.domain, dns.TypeSOA), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}
