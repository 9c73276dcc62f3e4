// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package workload

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// escape needs socket options of Linux.
type escape struct {
	mark   uint32
	source netip.Addr
}

func (e escape) dialer(string) *net.Dialer {
	d := &net.Dialer{}
	if e.mark != 0 || e.source.IsValid() {
		d.Control = func(string, string, syscall.RawConn) error { return errors.ErrUnsupported }
	}
	return d
}
