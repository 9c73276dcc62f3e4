// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Handler receives what the control plane sends, always from the goroutine that runs the client.
type Handler interface {
	// Update brings one response of the type: resources that are new or changed, and the names of those that are gone. The
	// values are only valid during the call. Each Rejection tells the control plane of a resource that was not taken over;
	// what it replaces should be kept. All others count as held.
	Update(typeURL string, up []Resource, removed []string) []Rejection
}

// Rejection is a resource that the Handler could not use.
type Rejection struct {
	Name string
	Err  error
}

// Metrics are called if they are set; they must not block.
type Metrics struct {
	// Message counts a response of the type and its size on the wire.
	Message func(typeURL string, bytes int)
	// Terminated counts the end of a stream, or that none came about: "ConnectionError" (there was no connection),
	// "Reconnect" (the connection broke or the server went away), "Error" (the server refused) or "Complete" (the server
	// ended it).
	Terminated func(reason string)
}

// ClientConfig says what to subscribe to, where. Zero durations mean the defaults that are named.
type ClientConfig struct {
	// Address is https://host:port, host:port (the same), or http://host:port, which is plain text and sends no token.
	Address string
	// RootCAFile is what the server's certificate must lead to; it is read anew for every connection. "" means the system's.
	RootCAFile string
	// TokenFile holds the service-account token; it is read anew for every stream. "" sends none.
	TokenFile string
	// ServerName replaces the address's host in the check of the server's certificate, if set.
	ServerName string
	ClusterID  string
	Headers    map[string]string // added to every stream

	Node    Node
	Types   []string // type URLs, in the order of the first requests
	Handler Handler
	// OnDemand subscribes to nothing of TypeAddress but what Demand names.
	OnDemand bool

	BackoffMin, BackoffMax time.Duration // between streams; 10 ms doubling to 15 s. Connections are tried once a second at least
	KeepaliveTime          time.Duration // of silence before a PING; 30 s
	KeepaliveTimeout       time.Duration // 10 s

	Log     *slog.Logger
	Metrics Metrics
}

// Client keeps one delta discovery stream open and remembers what it holds, so that a new stream sends only what changed.
type Client struct {
	cfg   ClientConfig
	ready chan struct{}

	// owned by Run
	held     map[string]map[string]string // type -> name -> version
	answered map[string]bool

	mu       sync.Mutex          // also serialises sending
	demanded map[string]struct{} // guarded by mu
	current  *stream             // guarded by mu; nil between streams
}

// NewClient checks cfg; the caller runs the Client.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Address == "" || cfg.Handler == nil || len(cfg.Types) == 0 {
		return nil, errors.New("xds client: address, handler and types are required")
	}
	if _, err := (&DeltaDiscoveryRequest{Node: &cfg.Node}).Encode(); err != nil {
		return nil, fmt.Errorf("xds client: %w", err)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&cfg.BackoffMin, 10 * time.Millisecond}, {&cfg.BackoffMax, 15 * time.Second},
		{&cfg.KeepaliveTime, 30 * time.Second}, {&cfg.KeepaliveTimeout, 10 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Client{
		cfg: cfg, ready: make(chan struct{}), held: map[string]map[string]string{}, answered: map[string]bool{},
		demanded: map[string]struct{}{},
	}
	for _, t := range cfg.Types {
		c.held[t] = map[string]string{}
	}
	return c, nil
}

// Ready is closed once every type was answered.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Run opens streams until ctx ends, then returns nil.
func (c *Client) Run(ctx context.Context) error {
	backoff := c.cfg.BackoffMin
	for ctx.Err() == nil {
		begun := time.Now()
		answered, err := c.runStream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.report(ctx, err)
		// A server that answers and then throws us out must not be asked every 10 ms.
		if answered && time.Since(begun) > c.cfg.BackoffMax {
			backoff = c.cfg.BackoffMin
		}
		wait := time.NewTimer(backoff - rand.N(backoff/2+1))
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
		backoff = min(2*backoff, c.cfg.BackoffMax)
	}
	return nil
}

const reasonConnection = "ConnectionError"

func (c *Client) report(ctx context.Context, err error) {
	reason, level := "Error", slog.LevelWarn
	switch code := status.Code(err); {
	case errors.Is(err, errConnect):
		reason = reasonConnection
	case errors.Is(err, io.EOF):
		reason, level = "Complete", slog.LevelInfo
	case code == codes.Unavailable || code == codes.Canceled || code == codes.DeadlineExceeded:
		reason, level = "Reconnect", slog.LevelInfo
	}
	c.cfg.Log.Log(ctx, level, "discovery stream ended", "address", c.cfg.Address, "reason", reason, "error", err)
	if c.cfg.Metrics.Terminated != nil {
		c.cfg.Metrics.Terminated(reason)
	}
}

// Demand subscribes to names ("network/address") of TypeAddress, on this stream and later ones. It is for clients with
// OnDemand; the answer, be it a resource or its absence, comes to the Handler. It is safe for concurrent use.
func (c *Client) Demand(names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, known := c.demanded[n]; return known })
	for _, n := range names {
		c.demanded[n] = struct{}{}
	}
	if c.current == nil || len(names) == 0 {
		return // the next stream starts with them
	}
	// An error ends the stream, which Run sees.
	_ = c.current.send(&DeltaDiscoveryRequest{TypeURL: TypeAddress, Subscribe: names})
}

// accept hands a response to the Handler, remembers what it holds now and says how to answer.
func (c *Client) accept(r *received) *DeltaDiscoveryRequest {
	answer := &DeltaDiscoveryRequest{TypeURL: r.TypeURL, ResponseNonce: r.Nonce}
	held, known := c.held[r.TypeURL]
	if !known {
		answer.ErrorDetail = &Status{Code: int32(codes.InvalidArgument), Message: fmt.Sprintf("did not subscribe to %q", r.TypeURL)}
		return answer
	}
	up, rejected := r.split()
	rejected = append(rejected, c.cfg.Handler.Update(r.TypeURL, up, r.Removed)...)
	bad := make(map[string]bool, len(rejected))
	for _, rej := range rejected {
		bad[rej.Name] = true
		c.cfg.Log.Warn("resource refused", "type", r.TypeURL, "name", rej.Name, "error", rej.Err)
	}
	for _, res := range up {
		// What a bad version was to replace stays held at its old one: its removal must still be told to us.
		if !bad[res.Name] {
			held[res.Name] = res.Version
		}
	}
	for _, name := range r.Removed {
		delete(held, name)
	}
	if len(rejected) > 0 {
		answer.ErrorDetail = &Status{Code: int32(codes.InvalidArgument), Message: joinRejections(rejected)}
	}
	c.answer(r.TypeURL)
	return answer
}

func (c *Client) answer(typeURL string) {
	if c.answered[typeURL] {
		return
	}
	c.answered[typeURL] = true
	if len(c.answered) == len(c.held) {
		close(c.ready)
	}
}

// joinRejections bounds the message: a control plane that gets everything wrong learns that from the first hundred.
func joinRejections(list []Rejection) string {
	const most = 100
	var b strings.Builder
	for i, r := range list {
		if i == most {
			fmt.Fprintf(&b, "; and %d more", len(list)-most)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %v", r.Name, r.Err)
	}
	return strings.ToValidUTF8(b.String(), "?")
}
