// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// wsSession calls the WebSocket at /ws, or at the URL's own path.
type wsSession struct {
	target target
	opts   Options
	http   *http.Transport

	conn *websocket.Conn
	last Call
	seen *Seen
}

func (s *wsSession) close() {
	if s.conn != nil {
		_ = s.conn.CloseNow()
		s.conn = nil
	}
	s.http.CloseIdleConnections()
}

func (s *wsSession) call(ctx context.Context, c *Call) error {
	fresh := s.conn == nil
	if fresh {
		if err := s.open(ctx, c); err != nil {
			return err
		}
		s.last = *c
	}
	c.Reused, c.LocalAddr, c.RemoteAddr, c.Status = !fresh, s.last.LocalAddr, s.last.RemoteAddr, s.last.Status
	c.Seen = s.seen
	if err := s.rounds(ctx, c, s.opts.rounds(fresh), s.opts.pingSize()); err != nil {
		return err
	}
	if s.opts.KeepOpen {
		return nil
	}
	err := s.conn.Close(websocket.StatusNormalClosure, "")
	s.conn = nil
	return err
}

func (s *wsSession) open(ctx context.Context, c *Call) error {
	ctx, tr := startTrace(ctx, c)
	defer tr.finish(c)
	u := *s.target.url
	if u.Path == "" || u.Path == "/" {
		u.Path = "/ws"
	}
	header := &http.Request{Header: http.Header{}}
	s.opts.setHeader(header)
	//nolint:bodyclose // the library has closed or taken over the body
	conn, resp, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: s.http}, HTTPHeader: header.Header, Host: header.Host,
	})
	if resp != nil {
		c.Status = resp.StatusCode
	}
	if err != nil {
		if resp != nil && resp.StatusCode >= 300 {
			return fmt.Errorf("%w %s: %w", errStatus, resp.Status, err)
		}
		return err
	}
	conn.SetReadLimit(maxMessage)
	s.conn = conn
	_, data, err := conn.Read(ctx)
	if err != nil {
		return err
	}
	c.FirstByte = time.Since(c.Start)
	s.seen = &Seen{}
	if err := json.Unmarshal(data, s.seen); err != nil {
		return fmt.Errorf("%w: not a report: %w", errMismatch, err)
	}
	return nil
}

func (s *wsSession) rounds(ctx context.Context, c *Call, rounds int, size int64) error {
	msg := make([]byte, size)
	if _, err := io.ReadFull(&patternReader{n: size}, msg); err != nil {
		return err
	}
	for range rounds {
		if err := s.conn.Write(ctx, websocket.MessageBinary, msg); err != nil {
			return err
		}
		c.BytesSent += size
		_, answer, err := s.conn.Read(ctx)
		if err != nil {
			return err
		}
		c.BytesRecv += int64(len(answer))
		if !bytes.Equal(answer, msg) {
			return fmt.Errorf("%w: message of %d bytes for one of %d", errMismatch, len(answer), size)
		}
		c.Rounds++
	}
	return nil
}
