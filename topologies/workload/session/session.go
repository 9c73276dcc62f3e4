// SPDX-License-Identifier: Apache-2.0

// Package session runs commands in a pod over one stream: where each command would otherwise cost a container runtime's own way
// of starting one, the stream's far end is a process that is there already. The stream speaks SSH (RFC 4254, section 6.5) without
// a user's authentication or a known host key: whoever can start the far end, and nobody else, has the stream.
package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
)

// ErrEnded says that a command was not started, since the stream has ended.
var ErrEnded = errors.New("the session has ended")

// Session is the near end. Its methods may be called concurrently.
type Session struct {
	client *ssh.Client
	done   chan struct{}
}

// Dial speaks to the far end over c, which is the session's from then on. An error closes it, and so does the end of ctx before
// Dial returns.
func Dial(ctx context.Context, c net.Conn) (*Session, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	conn, channels, requests, err := ssh.NewClientConn(c, "", &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey()}) //nolint:gosec // the stream is nobody else's
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("open a session: %w", err)
	}
	s := &Session{ssh.NewClient(conn, channels, requests), make(chan struct{})}
	go func() {
		_ = s.client.Wait()
		close(s.done)
	}()
	return s, nil
}

// Close ends the session, and commands that run in it.
func (s *Session) Close() error { return s.client.Close() }

// Done is closed once the session has ended, by whichever end.
func (s *Session) Done() <-chan struct{} { return s.done }

// startWithin bounds how long the end of a command's ctx waits to learn whether the command was started: whoever is to end it
// must find it.
const startWithin = 5 * time.Second

// Run runs a command and returns its exit code, 128 and the signal's number if one ended it. in may be nil: there is none then;
// output to a nil writer is dropped, and so is what comes after one that fails, whose error is returned at the end. When ctx ends
// Run returns, and a command that was started goes on: its end is the caller's to see to, and so is that out and errOut may be
// written to for a moment longer. An error that is ErrEnded says that nothing was started.
func (s *Session) Run(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (exit int, err error) {
	type result struct {
		exit int
		err  error
	}
	started, ended := make(chan struct{}), make(chan result, 1)
	go func() {
		exit, err := s.run(ctx, argv, in, out, errOut, func() { close(started) })
		ended <- result{exit, err}
	}()
	select {
	case r := <-ended:
		return r.exit, r.err
	case <-ctx.Done():
	}
	select {
	case <-started:
	case <-ended:
	case <-time.After(startWithin):
	}
	return 0, context.Cause(ctx)
}

func (s *Session) run(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer, started func()) (int, error) {
	command, err := json.Marshal(argv)
	if err != nil {
		return 0, err
	}
	run, err := s.client.NewSession()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrEnded, err)
	}
	defer run.Close()
	sinks := [2]*sink{{to: out}, {to: errOut}}
	run.Stdout, run.Stderr = sinks[0], sinks[1]
	if in != nil { // not run.Stdin: the end of a command would wait for the end of its input
		to, err := run.StdinPipe()
		if err != nil {
			return 0, err
		}
		go func() {
			_, _ = io.Copy(to, in)
			to.Close()
		}()
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err := run.Start(string(command)); err != nil {
		return 0, fmt.Errorf("start %s: %w", argv[0], err)
	}
	started()
	stop := context.AfterFunc(ctx, func() { run.Close() })
	defer stop()
	err = run.Wait()
	if status := (*ssh.ExitError)(nil); errors.As(err, &status) {
		return status.ExitStatus(), errors.Join(sinks[0].err, sinks[1].err)
	}
	return 0, errors.Join(err, sinks[0].err, sinks[1].err)
}

// sink takes everything, so that the far end never waits for a writer that has failed.
type sink struct {
	to  io.Writer // nil drops all
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.to != nil && s.err == nil {
		_, s.err = s.to.Write(p)
	}
	return len(p), nil
}
