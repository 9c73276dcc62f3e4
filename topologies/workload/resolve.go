// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// ResolveOptions say how a name server is asked. The zero value asks the pod's first one for an address, by UDP and
// without EDNS.
type ResolveOptions struct {
	Type    string        // of the record; "" means A. UPDATE and NOTIFY are operations instead
	Server  string        // address or address:port; "" means the first of resolv.conf
	TCP     bool          // ask by TCP
	EDNS    int           // payload size to offer; 0: no EDNS
	Search  bool          // try the search domains of resolv.conf, as resolvers do
	Timeout time.Duration // for one question; 0 means 8 s
}

// Resolution is what came back.
type Resolution struct {
	Name          string   `json:"name"` // that was asked for last
	Server        string   `json:"server"`
	Rcode         string   `json:"rcode,omitempty"` // "" if there was no answer
	Authoritative bool     `json:"authoritative,omitempty"`
	Truncated     bool     `json:"truncated,omitempty"`
	Answers       []string `json:"answers,omitempty"` // "owner TYPE data"
	EDNS          int      `json:"edns,omitempty"`    // payload size of the answer's OPT
	Reason        string   `json:"reason,omitempty"`  // extended error
	Bytes         int      `json:"bytes,omitempty"`   // of the answer as it was sent
	Error         string   `json:"error,omitempty"`
	Class         Class    `json:"class,omitempty"`
	ElapsedNanos  int64    `json:"elapsedNs"`
}

// Data are the answers of one type, without their owners.
func (r Resolution) Data(kind string) []string {
	var out []string
	for _, a := range r.Answers {
		if f := strings.SplitN(a, " ", 3); len(f) == 3 && f[1] == kind {
			out = append(out, f[2])
		}
	}
	return out
}

// ResolveCommand is the command line of a process that asks.
func ResolveCommand(name string, o ResolveOptions) []string {
	a := []string{"workload", "resolve"}
	for _, f := range []struct{ flag, value string }{{"type", o.Type}, {"server", o.Server}} {
		if f.value != "" {
			a = append(a, "--"+f.flag, f.value)
		}
	}
	if o.TCP {
		a = append(a, "--tcp")
	}
	if o.Search {
		a = append(a, "--search")
	}
	if o.EDNS > 0 {
		a = append(a, "--edns", strconv.Itoa(o.EDNS))
	}
	if o.Timeout > 0 {
		a = append(a, "--timeout", o.Timeout.String())
	}
	return append(a, name)
}

// ParseResolve reads the arguments of `workload resolve`.
func ParseResolve(args []string, stderr io.Writer) (ResolveOptions, string, error) {
	var o ResolveOptions
	fs := flag.NewFlagSet("workload resolve", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.Type, "type", "A", "type of the record, or UPDATE or NOTIFY")
	fs.StringVar(&o.Server, "server", "", "`address` or address:port of the name server (default the first of resolv.conf)")
	fs.BoolVar(&o.TCP, "tcp", false, "ask by TCP")
	fs.IntVar(&o.EDNS, "edns", 0, "payload size to offer; 0: no EDNS")
	fs.BoolVar(&o.Search, "search", false, "try the search domains of resolv.conf")
	fs.DurationVar(&o.Timeout, "timeout", 0, "for one question (default 8s)")
	if err := fs.Parse(args); err != nil {
		return o, "", err
	}
	if fs.NArg() != 1 {
		return o, "", fmt.Errorf("want one name, got %d arguments", fs.NArg())
	}
	_, err := o.message(fs.Arg(0))
	return o, fs.Arg(0), err
}

// Resolve asks. An error is about the options: what came of the question is in the result.
func Resolve(ctx context.Context, name string, o ResolveOptions) (Resolution, error) {
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil && (o.Server == "" || o.Search) {
		return Resolution{}, err
	}
	names := []string{dns.Fqdn(name)}
	if o.Search {
		names = conf.NameList(name)
	}
	server := o.Server
	if server == "" {
		server = conf.Servers[0]
	}
	if _, err := netip.ParseAddr(server); err == nil {
		server = net.JoinHostPort(server, "53")
	}
	var r Resolution
	for _, n := range names {
		q, err := o.message(n)
		if err != nil {
			return r, err
		}
		if r = o.exchange(ctx, q, server); r.Rcode != "NXDOMAIN" && (r.Rcode != "NOERROR" || len(r.Answers) > 0) {
			break
		}
	}
	return r, nil
}

func (o ResolveOptions) message(name string) (*dns.Msg, error) {
	name = dns.Fqdn(name)
	if _, ok := dns.IsDomainName(name); !ok {
		return nil, fmt.Errorf("%q is no domain name", name)
	}
	q := new(dns.Msg)
	switch kind := strings.ToUpper(cmp.Or(o.Type, "A")); kind {
	case "UPDATE":
		rr, err := dns.NewRR("added." + name + " 30 IN A 192.0.2.1")
		if err != nil {
			return nil, err
		}
		q.SetUpdate(name)
		q.Insert([]dns.RR{rr})
	case "NOTIFY":
		q.SetNotify(name)
	default:
		t, ok := dns.StringToType[kind]
		if !ok {
			return nil, fmt.Errorf("unknown type %q", o.Type)
		}
		q.SetQuestion(name, t)
	}
	if o.EDNS > 0 {
		q.SetEdns0(uint16(min(o.EDNS, dns.MaxMsgSize)), false)
	}
	return q, nil
}

func (o ResolveOptions) exchange(ctx context.Context, q *dns.Msg, server string) Resolution {
	r := Resolution{Name: q.Question[0].Name, Server: server}
	timeout := cmp.Or(o.Timeout, 8*time.Second)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := dns.Client{Timeout: timeout, UDPSize: dns.MaxMsgSize} // a server that sends more than was offered is found out
	if o.TCP {
		c.Net = "tcp"
	}
	start := time.Now()
	m, _, err := c.ExchangeContext(ctx, q, server)
	r.ElapsedNanos = time.Since(start).Nanoseconds()
	if err != nil {
		r.Error, r.Class = err.Error(), classify(ctx, err)
		return r
	}
	r.Rcode, r.Authoritative, r.Truncated = dns.RcodeToString[m.Rcode], m.Authoritative, m.Truncated
	for _, rr := range m.Answer {
		h := rr.Header()
		r.Answers = append(r.Answers, h.Name+" "+dns.TypeToString[h.Rrtype]+" "+strings.TrimPrefix(rr.String(), h.String()))
	}
	if opt := m.IsEdns0(); opt != nil {
		r.EDNS = int(opt.UDPSize())
		for _, option := range opt.Option {
			if e, ok := option.(*dns.EDNS0_EDE); ok {
				r.Reason = e.ExtraText
			}
		}
	}
	m.Compress = true
	r.Bytes = m.Len()
	return r
}

// errUnresolved says that there was no answer at all.
var errUnresolved = errors.New("no answer")

// Failed is nil if there was an answer of any kind.
func (r Resolution) Failed() error {
	if r.Rcode == "" {
		return fmt.Errorf("%w: %s", errUnresolved, r.Error)
	}
	return nil
}
