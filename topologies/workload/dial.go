// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// dialer connects to the first address that a name has and to no other: which address was tried is part of the result.
type dialer struct {
	family int
	escape escape
	mss    int
}

func (d dialer) dial(ctx context.Context, network, addr string, c *Call) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	ip, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		c.RemoteAddr = netip.AddrPortFrom(ip, uint16(n)) // known even if it cannot be reached
	}
	nd := d.escape.dialer(network)
	d.announce(nd)
	conn, err := nd.DialContext(ctx, network, net.JoinHostPort(ip.String(), port))
	if err != nil {
		return nil, err
	}
	c.Connect = time.Since(c.Start)
	c.LocalAddr, c.RemoteAddr = addrPort(conn.LocalAddr()), addrPort(conn.RemoteAddr())
	return conn, nil
}

// announce makes nd set what the peer has to learn with the first packet.
func (d dialer) announce(nd *net.Dialer) {
	if d.mss == 0 {
		return
	}
	before := nd.Control
	nd.Control = func(network, addr string, c syscall.RawConn) error {
		if before != nil {
			if err := before(network, addr, c); err != nil {
				return err
			}
		}
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		var set error
		if err := c.Control(func(fd uintptr) { set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, d.mss) }); err != nil {
			return err
		}
		return set
	}
}

func (d dialer) resolve(ctx context.Context, host string) (netip.Addr, error) {
	network := "ip"
	if d.family != 0 {
		network = fmt.Sprintf("ip%d", d.family)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, ip := range ips {
		if ip = ip.Unmap(); d.family == 0 || ip.Is4() == (d.family == 4) {
			return ip, nil
		}
	}
	return netip.Addr{}, &net.DNSError{Err: "no address of family " + network, Name: host, IsNotFound: true}
}

// errStatus says that the answer was an error.
var errStatus = errors.New("status")

// classify sorts an error; ctx is that of the call.
func classify(ctx context.Context, err error) Class {
	var dns *net.DNSError
	var addr *net.AddrError
	var rec tls.RecordHeaderError
	var alert tls.AlertError
	var netErr net.Error
	switch {
	case errors.Is(err, errMismatch):
		return ClassMismatch
	case errors.Is(err, errStatus):
		return ClassStatus
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return ClassPermission
	case errors.Is(err, syscall.ECONNREFUSED):
		return ClassRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return ClassReset
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return ClassNoRoute
	case errors.As(err, &dns) && !dns.IsTimeout, errors.As(err, &addr):
		return ClassResolve
	case errors.As(err, &rec), errors.As(err, &alert):
		return ClassTLS
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), ctx.Err() != nil,
		errors.As(err, &netErr) && netErr.Timeout():
		return ClassTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(err.Error(), "server closed"):
		return ClassEOF
	}
	return ClassOther
}

// deadline makes blocking calls on conn end with ctx. The returned function undoes it.
func deadline(ctx context.Context, conn net.Conn) (stop func()) {
	if d, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(d)
	}
	cut := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { cut() }
}
