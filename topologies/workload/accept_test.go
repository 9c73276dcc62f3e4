// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// scripted is a listener that gives one error after the other, and then connections.
type scripted struct {
	net.Listener
	errs []error
}

func (a *scripted) Accept() (net.Conn, error) {
	if len(a.errs) == 0 {
		return &net.TCPConn{}, nil
	}
	err := a.errs[0]
	a.errs = a.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
}

func TestAcceptWaitsForWhatIsScarce(t *testing.T) {
	many := func(err error, n int) (errs []error) {
		for range n {
			errs = append(errs, err)
		}
		return errs
	}
	for name, c := range map[string]struct {
		errs []error
		want error
		said int
		took time.Duration
	}{
		"nothing":                {},
		"a descriptor":           {errs: many(syscall.EMFILE, 1), said: 1, took: acceptWait},
		"a descriptor of all":    {errs: many(syscall.ENFILE, 2), said: 1, took: 3 * acceptWait},
		"for long":               {errs: many(syscall.EMFILE, 10), said: 3, took: 255*acceptWait + 2*acceptWaitMax},
		"control: what is wrong": {errs: []error{syscall.EINVAL}, want: syscall.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				p := &patient{Listener: &scripted{errs: c.errs}, log: slog.New(slog.NewTextHandler(&log, nil))}
				began := time.Now()
				conn, err := p.Accept()
				if !errors.Is(err, c.want) || (conn != nil) != (c.want == nil) {
					t.Errorf("Accept: %v, want %v", err, c.want)
				}
				if got := time.Since(began); got != c.took {
					t.Errorf("waited %v, want %v", got, c.took)
				}
				if got := strings.Count(log.String(), "cannot accept"); got != c.said {
					t.Errorf("said %d times, want %d:\n%s", got, c.said, log.String())
				}
			})
		})
	}
}

func TestAcceptEndsWithItsServer(t *testing.T) {
	done := make(chan struct{})
	close(done)
	p := &patient{Listener: &scripted{errs: []error{syscall.EMFILE}}, done: done}
	if _, err := p.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want %v", err, net.ErrClosed)
	}
}
