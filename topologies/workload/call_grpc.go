// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// grpcSession calls the grpc server.
type grpcSession struct {
	target target
	opts   Options
	http   *http.Transport
}

func (s *grpcSession) close() { s.http.CloseIdleConnections() }

func (s *grpcSession) call(ctx context.Context, c *Call) error {
	ctx, tr := startTrace(ctx, c)
	defer tr.finish(c)
	if s.opts.PingPong > 0 {
		return s.stream(ctx, c)
	}
	resp, err := s.open(ctx, grpcSeen, &messageReader{size: s.opts.Size})
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	msg, err := readMessage(resp.Body)
	c.BytesSent, c.BytesRecv = s.opts.Size, int64(len(msg))
	if err := grpcEnd(resp, c, err); err != nil {
		return err
	}
	c.Seen = &Seen{}
	if err := json.Unmarshal(msg, c.Seen); err != nil {
		return fmt.Errorf("%w: not a report: %w", errMismatch, err)
	}
	if s.opts.Size > 0 {
		return c.Seen.got(s.opts.Size)
	}
	return nil
}

func (s *grpcSession) open(ctx context.Context, method string, body io.Reader) (*http.Response, error) {
	u := *s.target.url
	u.Scheme, u.Path = "http", method
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	s.opts.setHeader(req)
	resp, err := s.http.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%w %s", errStatus, resp.Status)
	}
	return resp, nil
}

// stream exchanges messages, each answered before the next.
func (s *grpcSession) stream(ctx context.Context, c *Call) error {
	size := s.opts.pingSize()
	pr, pw := io.Pipe()
	defer func() { _ = pw.Close() }()
	resp, err := s.open(ctx, grpcStream, pr)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	for range s.opts.PingPong {
		if _, err := io.Copy(pw, &messageReader{size: size}); err != nil {
			if _, readErr := readMessage(resp.Body); readErr != nil {
				err = readErr // it knows why the transport took no more
			}
			return grpcEnd(resp, c, err)
		}
		c.BytesSent += size
		msg, err := readMessage(resp.Body)
		if err != nil {
			return grpcEnd(resp, c, err)
		}
		c.BytesRecv += int64(len(msg))
		if _, err := newChecker().Write(msg); err != nil {
			return err
		}
		c.Rounds++
	}
	if err := pw.Close(); err != nil {
		return err
	}
	return grpcEnd(resp, c, nil)
}

// grpcEnd reads the rest and gives the status that the trailers carry; readErr is why reading stopped before.
func grpcEnd(resp *http.Response, c *Call, readErr error) error {
	if readErr != nil && !errors.Is(readErr, io.EOF) {
		return readErr
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	status := resp.Trailer.Get("Grpc-Status")
	if status == "" {
		status = resp.Header.Get("Grpc-Status") // without a message, the trailers are the headers
	}
	if status == grpcOK {
		return readErr
	}
	if _, err := fmt.Sscan(status, &c.Status); err != nil {
		return fmt.Errorf("%w: no grpc status", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%w grpc %s: %s", errStatus, status, resp.Trailer.Get("Grpc-Message")+resp.Header.Get("Grpc-Message"))
}

// messageReader reads one framed message of size bytes of the pattern.
type messageReader struct {
	size int64
	r    io.Reader
}

func (m *messageReader) Read(b []byte) (int, error) {
	if m.r == nil {
		head := []byte{0, byte(m.size >> 24), byte(m.size >> 16), byte(m.size >> 8), byte(m.size)}
		m.r = io.MultiReader(strings.NewReader(string(head)), &patternReader{n: m.size})
	}
	return m.r.Read(b)
}
