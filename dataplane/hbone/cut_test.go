// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestCutEndsTheConnectionsThatArePicked(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			s, hop := startServer(t, serverConfig())
			p := startPool(t, clientConfig())
			app := hold(t)
			open := func(source string) *Stream {
				t.Helper()
				st, err := p.Open(testContext(t), Key{Addr: hop, Source: source}, &Request{Authority: app.String()})
				if err != nil {
					t.Fatal(err)
				}
				return st
			}
			one, two := open("one"), open("two")
			victim := one.LocalAddr()
			pick := func(i ConnInfo) bool {
				if i.TLS == nil || len(i.TLS.PeerCertificates) == 0 {
					t.Error("the peer's certificate is not told")
				}
				return i.Local == victim || i.Remote == victim
			}
			if side == "client" {
				p.Cut("test", pick)
			} else {
				s.Cut("test", pick)
			}
			eventually(t, "the connection is gone", func() bool { return len(p.Conns()) == 1 })
			if p.Conns()[0].Local == victim {
				t.Error("the other connection was cut")
			}
			two.Reset(http2.ErrCodeCancel)
		})
	}
}

// TestAbandonEndsTheFlusher: the read loop may have ended, and nobody else is left who would wake it.
func TestAbandonEndsTheFlusher(t *testing.T) {
	a, _ := tcpPair(t)
	rec, err := newRecordConn(a)
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(Config{}.withDefaults(1, 16<<10), &pooled{NewPool(PoolConfig{}), Key{}}, true, rec, &tls.ConnectionState{})
	c.timer = time.AfterFunc(time.Hour, func() {})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.flushLoop()
	}()
	rec.wakeFlusher()
	eventually(t, "it has looked once, and waits again", func() bool {
		stack := make([]byte, 1<<20)
		stack = stack[:runtime.Stack(stack, true)]
		i := bytes.Index(stack, []byte("hbone.(*conn).flushLoop"))
		return len(rec.handover) == 0 && i >= 0 && bytes.Contains(stack[bytes.LastIndex(stack[:i], []byte("goroutine ")):i], []byte("chan receive"))
	})
	rec.abandon()
	select {
	case <-ended:
	case <-time.After(budget):
		close(rec.handover)
		<-ended
		t.Error("it waits on")
	}
}

// TestExpiredConnectionTakesNoStream: what a pool keeps must not outlive the certificates that it was made with.
func TestExpiredConnectionTakesNoStream(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	cfg := clientConfig()
	dead := false
	p := startPool(t, PoolConfig{Config: cfg.Config, IdleFor: cfg.IdleFor, Dial: cfg.Dial, TLS: func(ctx context.Context, k Key) (*tls.Config, error) {
		if dead {
			return nil, errors.New("no certificate")
		}
		return cfg.TLS(ctx, k)
	}})
	app := hold(t)
	for range 2 {
		s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: app.String()})
		if err != nil {
			t.Fatal("control:", err)
		}
		s.Reset(http2.ErrCodeCancel)
	}
	if n := len(p.Conns()); n != 1 {
		t.Fatalf("control: %d connections for two streams", n)
	}
	p.mu.Lock()
	for _, e := range p.entries {
		for _, c := range e.conns {
			if d := time.Until(c.until); d <= 0 || d > time.Hour {
				t.Errorf("ends in %s", d)
			}
			c.until = time.Now().Add(-time.Second)
		}
	}
	p.mu.Unlock()
	dead = true
	if _, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: app.String()}); err == nil {
		t.Error("a connection of an expired certificate was used again")
	}
}
