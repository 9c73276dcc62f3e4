// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// attempts is how often a datagram is sent before an upstream is given up.
const attempts = 2

// maxForged is how many datagrams that are no answer are read before an upstream is given up: somebody is guessing.
const maxForged = 32

// forward asks the server that the client meant; if that cannot be found out, the fallback resolvers, one after the other.
func (s *Server) forward(ctx context.Context, q *query) ([]byte, error) {
	leave, marked, err := s.flights.enter(q)
	if err != nil {
		return nil, err
	}
	defer leave()
	raw := q.raw
	if marked {
		raw = s.flights.mark(q)
	}
	servers := []netip.AddrPort{s.origin(q)}
	if !servers[0].IsValid() {
		if servers = s.cfg.Transport.Fallback(); len(servers) == 0 {
			return nil, errNowhere
		}
	}
	var errs []error
	for _, to := range servers {
		q.event.Upstream = to
		answer, err := s.exchange(ctx, q, raw, to)
		if err == nil {
			if marked {
				answer = unmark(q, answer)
			}
			return answer, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// origin is where the client sent q; invalid if that is unknown, or this proxy itself: whom to ask then it did not say.
func (s *Server) origin(q *query) netip.AddrPort {
	to := q.origin
	if !q.tcp {
		var err error
		if to, err = s.cfg.Transport.Origin(q.client, q.local); err != nil {
			s.cfg.Log.Debug("a query's destination is not known", "client", q.client, "error", err)
			return netip.AddrPort{}
		}
	}
	if to.Port() == mesh.PortDNS && to.Addr().IsLoopback() {
		return netip.AddrPort{}
	}
	return to
}

// exchange asks one server, the way that the client asked, and by TCP if an answer did not fit into a datagram.
func (s *Server) exchange(ctx context.Context, q *query, raw []byte, to netip.AddrPort) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, attempts*s.cfg.Attempt)
	defer cancel()
	if q.tcp {
		return s.exchangeTCP(ctx, q, raw, to)
	}
	answer, err := s.exchangeUDP(ctx, q, raw, to)
	if err != nil || q.msg.Opcode != dns.OpcodeQuery || answer[flagsHigh]&bitTC == 0 {
		return answer, err
	}
	// It may fit what this client takes, though not what the server likes to send. Else the client asks by TCP itself.
	if whole, err := s.exchangeTCP(ctx, q, raw, to); err == nil && len(whole) <= limit(q.msg, false) {
		return whole, nil
	}
	return answer, nil
}

// identified copies raw with an id of our own, which nobody on the way can foresee. Other operations than QUERY stay as they are.
func (q *query) identified(raw []byte) (wire []byte, id uint16) {
	if q.msg.Opcode != dns.OpcodeQuery {
		return raw, q.msg.Id
	}
	id = uint16(rand.Uint32())
	wire = append([]byte(nil), raw...)
	binary.BigEndian.PutUint16(wire, id)
	return wire, id
}

func (s *Server) exchangeUDP(ctx context.Context, q *query, raw []byte, to netip.AddrPort) ([]byte, error) {
	c, err := s.cfg.Transport.DialUDP(ctx, to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	in, err := newReceiver(c)
	if err != nil {
		return nil, err
	}
	wire, id := q.identified(raw)
	forged := 0
	for range attempts {
		if ctx.Err() != nil {
			break
		}
		_ = c.SetReadDeadline(time.Now().Add(s.cfg.Attempt))
		if _, err := c.Write(wire); err != nil {
			return nil, fmt.Errorf("ask %s: %w", to, err)
		}
		for forged < maxForged {
			b, n, _, err := in.receive()
			if err != nil && ended(err) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("ask %s: %w", to, err)
			}
			if q.answers((*b)[:n], id) {
				answer := append([]byte(nil), (*b)[:n]...)
				give(b)
				return answer, nil
			}
			give(b)
			forged++
		}
	}
	if forged > 0 {
		return nil, fmt.Errorf("ask %s: %w (%d messages were no answer)", to, errTimeout, forged)
	}
	return nil, fmt.Errorf("ask %s: %w", to, errTimeout)
}

func (s *Server) exchangeTCP(ctx context.Context, q *query, raw []byte, to netip.AddrPort) ([]byte, error) {
	c, err := s.cfg.Transport.DialTCP(ctx, to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	wire, id := q.identified(raw)
	if err := writeFramed(c, wire); err != nil {
		return nil, fmt.Errorf("ask %s: %w", to, timedOut(err))
	}
	answer, err := readFramed(c)
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask %s: %w", to, timedOut(err))
	case !q.answers(answer, id):
		return nil, fmt.Errorf("ask %s: %w", to, errNoAnswer)
	}
	return answer, nil
}

// writeFramed writes a message with its length before it, in one segment if that is possible (RFC 7766, 8).
func writeFramed(c net.Conn, b []byte) error {
	if len(b) > dns.MaxMsgSize {
		return fmt.Errorf("a message of %d bytes is too long", len(b))
	}
	_, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, len(b)+2), uint16(len(b))), b...))
	return err
}

func readFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}
