// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
)

// Lasting is a session that is opened when a command first wants it, and again once it has ended, until Close. Its methods may be
// called concurrently.
type Lasting struct {
	dial  func(context.Context) (*Session, error)
	ctx   context.Context // of opening; ends with Close
	close context.CancelFunc

	slot chan struct{} // has an element while somebody uses open
	open *Session      // nil before the first use
}

// NewLasting is one whose sessions come from dial.
func NewLasting(dial func(context.Context) (*Session, error)) *Lasting {
	l := &Lasting{dial: dial, slot: make(chan struct{}, 1)}
	l.ctx, l.close = context.WithCancel(context.Background())
	return l
}

// Run is Session.Run. A command that was not started since the session had ended is given to another, once.
func (l *Lasting) Run(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
	for again := false; ; again = true {
		now, err := l.get(ctx)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrEnded, err)
		}
		exit, err := now.Run(ctx, argv, in, out, errOut)
		if !errors.Is(err, ErrEnded) || again || ctx.Err() != nil {
			return exit, err
		}
		l.drop(now)
	}
}

// Close ends the session that is open, if there is one, and commands that run in it. Later commands are not started.
func (l *Lasting) Close() {
	l.close()
	l.slot <- struct{}{} // what opens one gives up
	if l.open != nil {
		l.open.Close()
		l.open = nil
	}
	<-l.slot
}

func (l *Lasting) get(ctx context.Context) (*Session, error) {
	select {
	case l.slot <- struct{}{}:
		defer func() { <-l.slot }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l.ctx.Err() != nil {
		return nil, errClosed
	}
	if l.open != nil {
		select {
		case <-l.open.Done(): // with what ran the far end
			l.open = nil
		default:
			return l.open, nil
		}
	}
	dial, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(l.ctx, func() { cancel(errClosed) })
	defer stop()
	s, err := l.dial(dial)
	if err != nil {
		return nil, errors.Join(context.Cause(dial), err)
	}
	l.open = s
	return s, nil
}

var errClosed = errors.New("sessions were closed")

// drop forgets a session that has ended, unless another command did and opened the next.
func (l *Lasting) drop(was *Session) {
	l.slot <- struct{}{}
	if l.open == was {
		was.Close()
		l.open = nil
	}
	<-l.slot
}

// Over opens a session whose far end is a command that run runs to its end, with the stream as its standard input and output. What
// run says of a command that does not start is the error's reason.
func Over(ctx context.Context, run func(in io.Reader, out io.Writer) (exit int, err error)) (*Session, error) {
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		exit, err := run(far, far)
		if err == nil {
			err = fmt.Errorf("it ended with %d", exit)
		}
		ended <- err
		far.Close()
	}()
	s, err := Dial(ctx, near)
	if err == nil {
		return s, nil
	}
	select {
	case err = <-ended: // its reader and its writer have ended with the pipe
	case <-ctx.Done():
	}
	return nil, err
}
