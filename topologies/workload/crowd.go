// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// crowd are the calls of one command of which each that is answered waits for the others. nil is none.
type crowd struct {
	undecided atomic.Int64
	decided   chan struct{} // closed when there is none left
}

func newCrowd(n int) *crowd {
	c := &crowd{decided: make(chan struct{})}
	c.undecided.Store(int64(n))
	return c
}

func (c *crowd) decide() {
	if c.undecided.Add(-1) == 0 {
		close(c.decided)
	}
}

// failed takes note of a call that came to nothing, unless it was one that had been answered before.
func (c *crowd) failed(call Call) {
	if c != nil && !call.held {
		c.decide()
	}
}

// hold keeps the connection for as long as Options.Hold says, and fails if the peer does not.
func (s *tcpSession) hold(ctx context.Context, c *Call) error {
	if s.together == nil {
		return nil
	}
	c.held = true
	s.together.decide()
	until := s.opts.Stop
	if until == nil {
		until = s.together.decided
	}
	over, quit := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-until:
			_ = s.conn.SetReadDeadline(time.Unix(1, 0))
		case <-quit:
		}
	}()
	_, err := s.r.Peek(1)
	close(quit)
	<-over
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return s.conn.SetReadDeadline(time.Time{})
	case err == nil:
		return fmt.Errorf("%w: the server spoke while the connection was held", errMismatch)
	}
	return fmt.Errorf("while the connection was held: %w", err)
}
