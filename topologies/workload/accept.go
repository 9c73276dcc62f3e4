// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"log/slog"
	"net"
	"syscall"
	"time"
)

// Waits of a server that lacks descriptors or memory; each is twice the one before.
const (
	acceptWait    = 5 * time.Millisecond
	acceptWaitMax = time.Second
	acceptSay     = time.Second // what keeps failing is said this often
)

// patient is a listener that goes on when the process lacks what a connection takes, as others end and give it back. The
// kernel keeps the connection meanwhile.
type patient struct {
	net.Listener
	done <-chan struct{} // the server's end, which ends a wait
	log  *slog.Logger    // may be nil
	said time.Time       // owned by the caller of Accept
}

func (p *patient) Accept() (net.Conn, error) {
	for wait := acceptWait; ; wait = min(2*wait, acceptWaitMax) {
		c, err := p.Listener.Accept()
		if err == nil || !scarce(err) {
			return c, err
		}
		if p.log != nil && time.Since(p.said) >= acceptSay {
			p.said = time.Now()
			p.log.Error("cannot accept, and will try again: is the limit on open files (ulimit -n) too low?", "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-p.done:
			timer.Stop()
			return nil, net.ErrClosed
		}
	}
}

// scarce reports whether an error is for want of something that others may give back.
func scarce(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
