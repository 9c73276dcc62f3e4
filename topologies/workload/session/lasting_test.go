// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// served is a Lasting whose far ends are this process's, with the number of those that were opened, and what ends the last.
func served(t *testing.T) (l *Lasting, opened *int, end *func()) {
	t.Helper()
	opened, end = new(int), new(func())
	l = NewLasting(func(ctx context.Context) (*Session, error) {
		return Over(ctx, func(in io.Reader, out io.Writer) (int, error) {
			*opened++
			*end = func() { in.(io.Closer).Close() }
			r, w := io.Pipe() // as a process has: both ends speak first
			go func() {
				_, err := io.Copy(w, in)
				w.CloseWithError(err)
			}()
			return 0, Serve(r, out, nil)
		})
	})
	t.Cleanup(l.Close)
	return l, opened, end
}

func TestLastingIsOpenedOnceAndAgainWhenItHasEnded(t *testing.T) {
	l, opened, end := served(t)
	run := func() {
		t.Helper()
		var out bytes.Buffer
		if exit, err := l.Run(t.Context(), []string{"echo", "here"}, nil, &out, nil); exit != 0 || err != nil || out.String() != "here\n" {
			t.Fatalf("exit %d, %v: %q", exit, err, out.String())
		}
	}
	run()
	run()
	if *opened != 1 {
		t.Errorf("two commands opened %d sessions", *opened)
	}
	was := l.open
	(*end)()
	<-was.Done()
	run()
	if *opened != 2 {
		t.Errorf("after the end of the first, %d sessions were opened", *opened)
	}
}

func TestLastingSaysThatNothingWasStarted(t *testing.T) {
	l := NewLasting(func(ctx context.Context) (*Session, error) {
		return Over(ctx, func(io.Reader, io.Writer) (int, error) { return 0, errors.New("no such program") })
	})
	_, err := l.Run(t.Context(), []string{"true"}, nil, nil, nil)
	if !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("error %v: want ErrEnded, and why", err)
	}
}

// A session may end between the moment in which a command gets it and that in which it is used.
func TestLastingGivesACommandToTheNextSession(t *testing.T) {
	l, opened, _ := served(t)
	first, err := l.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	<-first.done
	first.done = make(chan struct{}) // nobody has seen the end
	if exit, err := l.Run(t.Context(), []string{"true"}, nil, nil, nil); exit != 0 || err != nil || *opened != 2 {
		t.Errorf("exit %d, %v, %d sessions", exit, err, *opened)
	}
}

func TestLastingCloses(t *testing.T) {
	began := make(chan struct{})
	l := NewLasting(func(ctx context.Context) (*Session, error) {
		close(began)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	ended := make(chan error)
	go func() {
		_, err := l.Run(context.Background(), []string{"true"}, nil, nil, nil)
		ended <- err
	}()
	<-began
	waiting, giveUp := context.WithCancel(t.Context())
	giveUp()
	if _, err := l.Run(waiting, []string{"true"}, nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a command whose ctx has ended waits for the session, %v", err)
	}
	l.Close()
	if err := <-ended; !errors.Is(err, errClosed) {
		t.Errorf("a command that waited for a session: %v", err)
	}
	if _, err := l.Run(t.Context(), []string{"true"}, nil, nil, nil); !errors.Is(err, ErrEnded) {
		t.Errorf("after Close: %v", err)
	}
}
