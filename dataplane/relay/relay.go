// SPDX-License-Identifier: Apache-2.0

// Package relay copies bytes both ways between two TCP connections, closing each half as its peer ends, and says how
// much went each way and which side failed. It neither dials nor chooses a destination; tunnels (hbone) share its
// result and error types.
// Sources: Istio architecture/ambient/ztunnel.md; ztunnel's stream copy (reference: protocols A1.8).
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Side names one end of a relayed stream.
type Side uint8

// The two sides: Downstream faces the client that opened the stream, Upstream the server it was opened to.
const (
	Downstream Side = iota
	Upstream
)

func (s Side) String() string {
	if s == Upstream {
		return "upstream"
	}
	return "downstream"
}

// Error says which side broke a stream and during what: "read", "write" or "reset".
type Error struct {
	Side Side
	Op   string
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("%s %s: %v", e.Op, e.Side, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Result is what became of a relayed stream.
type Result struct {
	// BytesUp counts client to upstream, BytesDown upstream to client: bytes that were handed to the other side.
	BytesUp, BytesDown uint64
	// Reset is set when the stream did not end by two clean half-closes.
	Reset bool
	// Err is nil for a normal end. A reset or a broken pipe counts as normal (protocols A1.8); anything else is an
	// *Error, or the cause of the context that cut the stream.
	Err error
}

// Normal reports whether err is one of the ways in which applications end connections all day: end of stream, reset,
// broken pipe, not connected.
func Normal(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ENOTCONN)
}

// Copy relays between down and up until both directions have ended, then closes both. The end of one side's input
// half-closes the other. A failure resets both; so does the end of ctx, whose cause becomes Result.Err.
// Bytes move inside the kernel (splice) where it can.
func Copy(ctx context.Context, down, up *net.TCPConn) Result {
	p := &pair{down: down, up: up}
	stop := context.AfterFunc(ctx, func() { p.fail(context.Cause(ctx)) })
	var g sync.WaitGroup
	g.Go(func() { p.copyOneWay(up, down, Upstream, Downstream, &p.bytesDown) })
	p.copyOneWay(down, up, Downstream, Upstream, &p.bytesUp)
	g.Wait()
	stop()
	return p.finish()
}

// pair is a relayed stream in flight.
type pair struct {
	down, up           *net.TCPConn
	bytesUp, bytesDown atomic.Uint64

	mu    sync.Mutex
	reset bool
	err   error
}

func (p *pair) copyOneWay(src, dst *net.TCPConn, from, to Side, count *atomic.Uint64) {
	// TCPConn.ReadFrom splices, and its error does not say whose socket failed: a broken pipe can only be the
	// receiver's, anything else is taken for the sender's.
	n, err := dst.ReadFrom(src)
	count.Add(uint64(max(n, 0)))
	if err == nil {
		err = dst.CloseWrite()
		if errors.Is(err, syscall.ENOTCONN) {
			err = nil // the peer has already closed or reset it; its own direction reports that
		}
		if err == nil {
			return
		}
		p.fail(&Error{Side: to, Op: "write", Err: err})
		return
	}
	if errors.Is(err, syscall.EPIPE) {
		p.fail(&Error{Side: to, Op: "write", Err: err})
		return
	}
	p.fail(&Error{Side: from, Op: "read", Err: err})
}

// fail records the first failure and wakes both directions.
func (p *pair) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reset {
		return
	}
	p.reset = true
	if !Normal(err) {
		p.err = err
	}
	p.down.SetDeadline(time.Unix(1, 0))
	p.up.SetDeadline(time.Unix(1, 0))
}

func (p *pair) finish() Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reset {
		p.down.SetLinger(0)
		p.up.SetLinger(0)
	}
	p.down.Close()
	p.up.Close()
	return Result{BytesUp: p.bytesUp.Load(), BytesDown: p.bytesDown.Load(), Reset: p.reset, Err: p.err}
}
