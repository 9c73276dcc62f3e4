// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// lane is a listener and what starts to serve its connections, without blocking: serve, or serveFile where the socket alone
// is wanted.
type lane struct {
	l         *net.TCPListener
	serve     func(ctx context.Context, c *net.TCPConn)
	files     *netns.Acceptor // with serveFile
	serveFile func(ctx context.Context, c *os.File, client netip.AddrPort)
}

// wake ends the wait for the next connection, as soon as ended is set.
func (l *lane) wake() {
	if l.files != nil {
		l.files.Stop()
		return
	}
	_ = l.l.SetDeadline(time.Unix(1, 0))
}

// next serves the next connection.
func (l *lane) next(ctx context.Context) error {
	if l.files != nil {
		c, client, err := l.files.Accept()
		if err == nil {
			l.serveFile(ctx, c, client)
		}
		return err
	}
	c, err := l.l.AcceptTCP()
	if err == nil {
		l.serve(ctx, c)
	}
	return err
}

// take serves a connection that a hand-over has accepted, or resets it, with an error, if there is no descriptor left.
func (l *lane) take(ctx context.Context, c *net.TCPConn) error {
	if l.serveFile == nil {
		l.serve(ctx, c)
		return nil
	}
	client := remoteOf(c)
	f, err := netns.AsFile(c)
	if err != nil {
		netns.ResetOnClose(c)
		c.Close()
		return err
	}
	l.serveFile(ctx, f, client)
	return nil
}

// wakeLanes ends the accept loops. With grace their listeners stay open for the hand-over.
func (p *proxy) wakeLanes() {
	for _, l := range p.lanes {
		l.wake()
		if p.grace == 0 {
			l.l.Close()
		}
	}
	p.names.end(p.grace > 0)
}

// accept serves l's connections until the proxy ends, and then hands the listener over to a successor if there is time: half
// of the grace, because connections are told to end only after that, and a handshake that hangs must not take all of it.
func (p *proxy) accept(ctx context.Context, l lane) {
	p.acceptUntilEnd(ctx, l)
	if p.grace == 0 {
		return
	}
	limit, cancel := context.WithTimeout(ctx, p.grace/2)
	defer cancel()
	err := netns.HandOver(limit, l.l, func(c *net.TCPConn) {
		if err := l.take(ctx, c); err != nil {
			p.log.Warn("cannot serve a connection", "listener", l.l.Addr(), "error", err)
		}
	})
	if err != nil {
		p.log.Warn("listener not handed over cleanly", "listener", l.l.Addr(), "error", err)
	}
}

// A loop that finds thousands waiting would start as many goroutines, behind which every other would wait for its processor,
// and while it never rests, Go's scheduler looks at the network every 10 ms only. So it rests a moment after acceptsInARow if
// those took no longer than acceptsTime.
const (
	acceptsInARow = 16
	acceptsTime   = time.Millisecond
	acceptsRest   = 100 * time.Microsecond
)

// acceptUntilEnd returns once drain was called and its listener woken.
func (p *proxy) acceptUntilEnd(ctx context.Context, l lane) {
	var backoff time.Duration
	for n, since := 1, time.Now(); ; n++ {
		err := l.next(ctx)
		if err == nil {
			backoff = 0
			if n%acceptsInARow == 0 {
				if time.Since(since) < acceptsTime {
					time.Sleep(acceptsRest)
				}
				since = time.Now()
			}
			continue
		}
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			<-p.ended
			return
		}
		// Out of descriptors or memory, most likely; connections that end will help.
		backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
		p.log.Warn("cannot accept a connection", "listener", l.l.Addr(), "error", err, "retry", backoff.String())
		t := time.NewTimer(backoff)
		select {
		case <-t.C:
		case <-p.ended:
		}
		t.Stop()
	}
}
