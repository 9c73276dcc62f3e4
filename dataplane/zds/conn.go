// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/zds/zdsapi"
)

// errGone says that the proxy went away before it answered.
var errGone = errors.New("ztunnel disconnected")

// conn is one proxy that said hello. Its goroutine alone sends; acks come from the reader, which stands by all the time, so
// that a proxy that went away is noticed at once and not with the next request.
type conn struct {
	raw     *net.UnixConn
	timeout time.Duration
	work    chan work
	acks    chan *zdsapi.Ack
	gone    chan struct{} // closed when the conversation has ended
}

type work struct {
	req  *zdsapi.WorkloadRequest
	ns   *netns.NS // sent along if not nil; closed afterwards
	done chan error
}

// do queues req and waits for the proxy's answer. It closes ns, in any case.
func (c *conn) do(ctx context.Context, req *zdsapi.WorkloadRequest, ns *netns.NS) error {
	w := work{req: req, ns: ns, done: make(chan error, 1)}
	select {
	case c.work <- w:
	case <-c.gone:
		ns.Close()
		return errGone
	case <-ctx.Done():
		ns.Close()
		return ctx.Err()
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// serve holds one conversation until the proxy leaves, breaks the rules, or ctx ends.
func (s *Server) serve(ctx context.Context, raw *net.UnixConn) {
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	if err := s.hello(raw); err != nil {
		s.cfg.Log.Warn("ztunnel did not introduce itself", "error", err)
		return
	}
	c := &conn{
		raw: raw, timeout: s.cfg.MessageTimeout,
		work: make(chan work), acks: make(chan *zdsapi.Ack), gone: make(chan struct{}),
	}
	if !s.register(c) {
		s.cfg.Log.Warn("ztunnel refused", "connections", maxConns)
		return
	}
	s.cfg.Changed()
	defer s.cfg.Changed()
	ended := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() { ended <- c.read() })
	err := s.converse(c, ended)
	raw.Close()
	s.unregister(c)
	close(c.gone)
	reader.Wait()
	level := slog.LevelInfo
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, ErrProtocol):
		level = slog.LevelWarn
	}
	s.cfg.Log.Log(ctx, level, "ztunnel disconnected", "error", err, "left", s.Connected())
}

func (s *Server) hello(raw *net.UnixConn) error {
	if err := raw.SetReadDeadline(time.Now().Add(s.cfg.MessageTimeout)); err != nil {
		return err
	}
	var hello zdsapi.ZdsHello
	fds, err := receive(raw, &hello)
	if err != nil {
		return err
	}
	closeAll(fds)
	if len(fds) > 0 || hello.GetVersion() != zdsapi.Version_V1 {
		return fmt.Errorf("%w: hello of version %s with %d descriptors", ErrProtocol, hello.GetVersion(), len(fds))
	}
	return raw.SetReadDeadline(time.Time{})
}

// register reports false if there are too many already.
func (s *Server) register(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns {
		return false
	}
	s.conns = append(s.conns, c)
	s.cfg.Log.Info("ztunnel connected", "connections", len(s.conns))
	return true
}

func (s *Server) unregister(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = slices.DeleteFunc(s.conns, func(o *conn) bool { return o == c })
}

// converse sends the snapshot and then what is asked for. It is registered before it reads the snapshot, so that a pod can
// be named twice, but not be missed. The result is why it ended.
func (s *Server) converse(c *conn, ended <-chan error) error {
	for _, e := range s.cfg.Snapshot() {
		if err := s.sendEntry(c, e, ended); err != nil {
			return err
		}
	}
	sent := &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_SnapshotSent{SnapshotSent: &zdsapi.SnapshotSent{}}}
	if refused, err := c.exchange(sent, nil, ended); err != nil {
		return err
	} else if refused != nil {
		s.cfg.Log.Warn("ztunnel refused the snapshot", "error", refused)
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-c.acks:
			return fmt.Errorf("%w: an acknowledgement of nothing", ErrProtocol)
		case w := <-c.work:
			refused, err := c.exchange(w.req, w.ns, ended)
			if err != nil {
				w.done <- fmt.Errorf("%w: %w", errGone, err)
				return err
			}
			w.done <- refused
		}
	}
}

func (s *Server) sendEntry(c *conn, e Entry, ended <-chan error) error {
	req := addRequest(e.Workload)
	var dup *netns.NS
	if e.NS == nil {
		req = &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Keep{Keep: &zdsapi.KeepWorkload{Uid: e.UID}}}
	} else {
		var err error
		if dup, err = e.NS.Dup(); errors.Is(err, os.ErrClosed) {
			return nil // gone since the list was made
		} else if err != nil {
			return err
		}
	}
	refused, err := c.exchange(req, dup, ended)
	if err == nil && refused != nil {
		// The proxy tries again by itself and is not ready until it succeeds.
		s.cfg.Log.Warn("ztunnel cannot serve a pod yet", "uid", e.UID, "namespace", e.Namespace, "name", e.Name, "error", refused)
	}
	return err
}

// exchange sends one request and waits for its acknowledgement. refused is the proxy's error; err ends the conversation.
func (c *conn) exchange(req *zdsapi.WorkloadRequest, ns *netns.NS, ended <-chan error) (refused, err error) {
	defer ns.Close()
	fd := -1
	if ns != nil {
		fd = ns.Fd()
	}
	if err := send(c.raw, req, fd); errors.Is(err, errTooLong) {
		return err, nil
	} else if err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	late := time.NewTimer(c.timeout)
	defer late.Stop()
	select {
	case ack := <-c.acks:
		if ack.GetError() != "" {
			return errors.New("ztunnel: " + ack.GetError()), nil
		}
		return nil, nil
	case err := <-ended:
		return nil, err
	case <-late.C:
		return nil, fmt.Errorf("no acknowledgement within %v", c.timeout)
	}
}

// read hands on acknowledgements until the conversation ends.
func (c *conn) read() error {
	for {
		var rsp zdsapi.WorkloadResponse
		fds, err := receive(c.raw, &rsp)
		if errors.Is(err, io.EOF) {
			return errors.New("ztunnel hung up")
		}
		if err != nil {
			return err
		}
		closeAll(fds)
		ack, ok := rsp.GetPayload().(*zdsapi.WorkloadResponse_Ack)
		if !ok || len(fds) > 0 {
			return fmt.Errorf("%w: an answer that is no acknowledgement", ErrProtocol)
		}
		select {
		case c.acks <- ack.Ack:
		case <-c.gone:
			return errGone
		}
	}
}
