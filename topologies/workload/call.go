// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"slices"
	"sync"
	"time"
)

// session makes calls one after the other. It is used by one goroutine.
type session interface {
	// call makes one call, bounded by ctx. Start, Latency and the error's class are filled in by its caller.
	call(ctx context.Context, c *Call) error
	// close drops what is open; a later call opens it again.
	close()
}

// Do makes the calls that o describes. It returns when all of them ended: those that had begun when ctx ended are cut.
// The error is about url or o; what came of the calls is in the result.
func Do(ctx context.Context, url string, o Options) (Result, error) {
	t, err := parseTarget(url)
	if err != nil {
		return Result{}, err
	}
	if err := o.validate(url); err != nil {
		return Result{}, err
	}
	start := time.Now()
	col := &collector{res: Result{URL: url, Errors: map[Class]int{}, Servers: map[string]int{}}}
	var together *crowd
	if o.Hold {
		together = newCrowd(o.Count)
	}
	tickets := make(chan struct{})
	var g sync.WaitGroup
	for range max(1, o.Concurrency) {
		g.Go(func() {
			s := newSession(t, o, together)
			defer s.close()
			var l ledger
			for range tickets {
				c := callOnce(ctx, s, o, together)
				l.note(c, o)
				col.add(c)
				if !o.KeepOpen {
					s.close()
				}
			}
			col.enter(l.done())
		})
	}
	issue(ctx, o, tickets)
	close(tickets)
	g.Wait()
	return col.result(time.Since(start)), nil
}

// issue hands out one ticket per call, on time.
func issue(ctx context.Context, o Options, tickets chan<- struct{}) {
	count := o.Count
	if count == 0 && o.Duration == 0 && o.Stop == nil {
		count = 1
	}
	var end <-chan time.Time
	if o.Duration > 0 {
		t := time.NewTimer(o.Duration)
		defer t.Stop()
		end = t.C
	}
	var tick <-chan time.Time
	if o.Interval > 0 {
		t := time.NewTicker(o.Interval)
		defer t.Stop()
		tick = t.C
	}
	for i := 0; count == 0 || i < count; i++ {
		if i > 0 && tick != nil {
			select {
			case <-tick:
			case <-end:
				return
			case <-o.Stop:
				return
			case <-ctx.Done():
				return
			}
		}
		select {
		case tickets <- struct{}{}:
		case <-end:
			return
		case <-o.Stop:
			return
		case <-ctx.Done():
			return
		}
	}
}

func callOnce(ctx context.Context, s session, o Options, together *crowd) Call {
	ctx, cancel := context.WithTimeout(ctx, o.timeout())
	defer cancel()
	c := Call{Start: time.Now()}
	err := s.call(ctx, &c)
	c.Latency = time.Since(c.Start)
	c.OK = err == nil
	if err != nil {
		together.failed(c)
		c.Class, c.Error = classify(ctx, err), err.Error()
		s.close() // its state is unknown
	}
	return c
}

func newSession(t target, o Options, together *crowd) session {
	d := dialer{family: o.Family, escape: escape{mark: o.Mark, source: o.Bind}, mss: o.MSS}
	switch t.scheme {
	case "tcp", "tcp-first":
		return &tcpSession{target: t, opts: o, dialer: d, together: together}
	case "udp":
		return &udpSession{target: t, opts: o, dialer: d}
	case "ws", "wss":
		return &wsSession{target: t, opts: o, http: newTransport(t, o, d)}
	case "grpc":
		return &grpcSession{target: t, opts: o, http: newTransport(t, o, d)}
	default:
		return &httpSession{target: t, opts: o, http: newTransport(t, o, d)}
	}
}

// collector gathers calls from all sessions.
type collector struct {
	mu        sync.Mutex
	res       Result
	failures  int
	latencies []time.Duration
}

func (c *collector) add(call Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call.OK {
		c.res.OK++
		c.latencies = append(c.latencies, call.Latency)
	} else {
		c.res.Failed++
		c.res.Errors[call.Class]++
	}
	if s := call.Seen; s != nil {
		c.res.Servers[s.Namespace+"/"+s.Workload]++
	}
	switch {
	case len(c.res.Calls)-c.failures < KeptCalls:
	case !call.OK && c.failures < KeptFailures:
		c.failures++
	default:
		return
	}
	c.res.Calls = append(c.res.Calls, call)
}

func (c *collector) result(elapsed time.Duration) Result {
	r := c.res
	r.Elapsed = elapsed
	if len(c.latencies) > 0 {
		slices.Sort(c.latencies)
		r.LatencyP50 = quantile(c.latencies, 50)
		r.LatencyP99 = quantile(c.latencies, 99)
		r.LatencyMax = c.latencies[len(c.latencies)-1]
	}
	return r
}

// quantile is the smallest value that p percent of the sorted values do not exceed.
func quantile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}
