// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"crypto/rand"
	"slices"
	"sync"

	"github.com/miekg/dns"
)

// A resolver in the pod whose own upstream leads back to it (CoreDNS that is enrolled and asks its own service, a node-local
// cache that asks the cluster's DNS that asks the node) sends every query round and round, each time through here under
// another id. Two things recognise it. From the third equal query that is on its way, each carries a mark of this server in
// an EDNS option for local use (RFC 6891, 9); one that arrives with the mark is refused at once. Resolvers that do not pass
// options on are stopped by the number of equal queries: no more than sixty-four are on their way, and the answer to the next
// runs back through the whole circle. One query at a time is never touched.
const (
	suspicious = 3
	tooMany    = 64

	markCode  = 65053 // of an EDNS option for local use
	markBytes = 8
)

// flights are the queries that wait for an upstream's answer.
type flights struct {
	mu    sync.Mutex
	equal map[question]int
	token []byte // this server's mark
}

// enter takes q in unless it goes round in a circle. marked says that it must carry the mark.
func (f *flights) enter(q *query) (leave func(), marked bool, err error) {
	key := q.question()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.carries(q.msg) {
		return nil, false, errLoop
	}
	n := f.equal[key]
	if n >= tooMany {
		return nil, false, errTooMany
	}
	if f.equal == nil {
		f.equal = map[question]int{}
	}
	if n+1 >= suspicious && f.token == nil {
		f.token = make([]byte, markBytes)
		_, _ = rand.Read(f.token) // never fails
	}
	f.equal[key] = n + 1
	marked = n+1 >= suspicious && q.msg.Opcode == dns.OpcodeQuery && q.msg.IsTsig() == nil
	return func() { f.leave(key) }, marked, nil
}

func (f *flights) leave(key question) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.equal[key]--; f.equal[key] == 0 {
		delete(f.equal, key)
	}
}

// carries is called with mu held.
func (f *flights) carries(m *dns.Msg) bool {
	opt := m.IsEdns0()
	if opt == nil || f.token == nil {
		return false
	}
	return slices.ContainsFunc(opt.Option, func(o dns.EDNS0) bool {
		local, ok := o.(*dns.EDNS0_LOCAL)
		return ok && local.Code == markCode && slices.Equal(local.Data, f.token)
	})
}

// mark is q with this server's mark; q as it is if that cannot be written.
func (f *flights) mark(q *query) []byte {
	m := q.msg.Copy()
	opt := m.IsEdns0()
	if opt == nil {
		m.SetEdns0(dns.MinMsgSize, false)
		opt = m.IsEdns0()
	}
	opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: markCode, Data: f.token})
	raw, err := m.Pack()
	if err != nil {
		return q.raw
	}
	return raw
}

// unmark takes from an answer to a marked query what its client did not ask with.
func unmark(q *query, answer []byte) []byte {
	if q.msg.IsEdns0() != nil {
		return answer
	}
	var m dns.Msg
	if err := m.Unpack(answer); err != nil {
		return answer
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(r dns.RR) bool { return r.Header().Rrtype == dns.TypeOPT })
	m.Compress = true
	raw, err := m.Pack()
	if err != nil {
		return answer
	}
	return raw
}
