// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// ErrNoAddress says that a host has no address of the family asked for, or does not exist.
var ErrNoAddress = errors.New("the host has no such address")

// How long an address is kept, whatever its records say, and how many are.
const (
	keepMin, keepMax = time.Second, 30 * time.Second
	keptHosts        = 256
)

// answers are addresses of hosts that were asked for before; guarded by mu.
type answers struct {
	mu   sync.Mutex
	kept map[host]kept
}

type host struct {
	name string
	v6   bool
}

type kept struct {
	addrs []netip.Addr
	until time.Time
}

// Resolve finds an address of a host outside the mesh, by the fallback resolvers: the mesh's own names are no part of it.
// Of several addresses it is any.
func (s *Server) Resolve(ctx context.Context, name string, v6 bool) (netip.Addr, error) {
	key := host{name, v6}
	addrs, ok := s.answers.get(key)
	if !ok {
		found, ttl, err := s.lookup(ctx, name, v6)
		if err != nil {
			return netip.Addr{}, err
		}
		addrs = found
		s.answers.put(key, kept{found, time.Now().Add(min(max(ttl, keepMin), keepMax))})
	}
	if len(addrs) == 0 {
		return netip.Addr{}, ErrNoAddress
	}
	return addrs[rand.IntN(len(addrs))], nil
}

func (a *answers) get(key host) ([]netip.Addr, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.kept[key]
	return k.addrs, ok && time.Now().Before(k.until)
}

func (a *answers) put(key host, k kept) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kept == nil || len(a.kept) >= keptHosts {
		a.kept = map[host]kept{} // whoever needs more than that asks again
	}
	a.kept[key] = k
}

func (s *Server) lookup(ctx context.Context, name string, v6 bool) ([]netip.Addr, time.Duration, error) {
	kind := dns.TypeA
	if v6 {
		kind = dns.TypeAAAA
	}
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	m.SetEdns0(ownPayload, false)
	raw, err := m.Pack()
	if err != nil {
		return nil, 0, fmt.Errorf("ask for %q: %w", name, err)
	}
	q := &query{raw: raw, msg: m}
	servers := s.cfg.Transport.Fallback()
	if len(servers) == 0 {
		return nil, 0, errNowhere
	}
	var errs []error
	for _, to := range servers {
		b, err := s.exchange(ctx, q, raw, to)
		var r dns.Msg
		if err == nil {
			err = r.Unpack(b)
		}
		if err == nil && r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
			err = fmt.Errorf("ask %s: %s", to, dns.RcodeToString[r.Rcode])
		}
		if err == nil {
			addrs, ttl := addressesIn(&r)
			return addrs, ttl, nil
		}
		errs = append(errs, err)
	}
	return nil, 0, errors.Join(errs...)
}

// addressesIn collects an answer's addresses, at the end of whatever aliases, and how long they hold.
func addressesIn(m *dns.Msg) (addrs []netip.Addr, ttl time.Duration) {
	ttl = keepMax
	for _, rr := range m.Answer {
		var raw []byte
		switch rr := rr.(type) {
		case *dns.A:
			raw = rr.A
		case *dns.AAAA:
			raw = rr.AAAA
		}
		if a, ok := netip.AddrFromSlice(raw); ok {
			addrs = append(addrs, a.Unmap())
		}
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	return addrs, ttl
}
