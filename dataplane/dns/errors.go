// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// Why a query is answered SERVFAIL.
var (
	errBusy     = errors.New("too many queries wait for an answer")
	errNowhere  = errors.New("neither the query's destination nor a resolver of the proxy's own is known")
	errTimeout  = errors.New("no answer in time")
	errNoAnswer = errors.New("what came back is no answer to the question")
	errLoop     = errors.New("a query that was passed on has come back: the resolver sends it here again")
	errTooMany  = errors.New("too many equal queries wait for an answer: a resolver that sends them here again?")
)

// unreadyError is a query of a pod that the mesh does not know yet.
type unreadyError struct{ err error }

func (e *unreadyError) Error() string { return e.err.Error() }
func (e *unreadyError) Unwrap() error { return e.err }

// extended is the info code for the reason of a failure (RFC 8914, 4).
func extended(err error) uint16 {
	var unready *unreadyError
	var network syscall.Errno
	switch {
	case errors.As(err, &unready):
		return dns.ExtendedErrorCodeNotReady
	case errors.Is(err, errTimeout):
		return dns.ExtendedErrorCodeNoReachableAuthority
	case errors.As(err, &network):
		return dns.ExtendedErrorCodeNetworkError
	}
	return dns.ExtendedErrorCodeOther
}

// ended reports whether a socket will give nothing more.
func ended(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
}

// timedOut calls a deadline what it means here.
func timedOut(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errTimeout
	}
	return err
}

// quietFor is how long nothing is logged after a loop was.
const quietFor = 10 * time.Second

// warn logs loops: what is wrong with them is the pod's configuration, and somebody must hear of it.
func (s *Server) warn(q *query, err error) {
	if !errors.Is(err, errLoop) && !errors.Is(err, errTooMany) {
		return
	}
	now := time.Now().Unix()
	last := s.warned.Load()
	if now-last >= int64(quietFor/time.Second) && s.warned.CompareAndSwap(last, now) {
		s.cfg.Log.Warn("DNS queries go round in a circle", "name", q.event.Name, "type", q.event.Type, "error", err)
	}
}
