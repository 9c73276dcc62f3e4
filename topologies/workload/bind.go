// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// binder opens sockets and remembers them, so that all are closed if one cannot be had.
type binder struct{ open []interface{ Close() error } }

func (b *binder) close() {
	for _, c := range b.open {
		_ = c.Close()
	}
}

func (b *binder) tcp(ctx context.Context, p Port) ([]net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // what is measured is TCP
	return bindAll(p, "tcp", func(addr string) (net.Listener, error) {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err == nil {
			b.open = append(b.open, l)
		}
		return l, err
	})
}

func (b *binder) udp(ctx context.Context, p Port) ([]*net.UDPConn, error) {
	var lc net.ListenConfig
	return bindAll(p, "udp", func(addr string) (*net.UDPConn, error) {
		c, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			return nil, err
		}
		b.open = append(b.open, c)
		return c.(*net.UDPConn), nil
	})
}

// bindAll binds p at every address that its Bind means. A family that the host does not have is left out.
func bindAll[T any](p Port, network string, bind func(addr string) (T, error)) ([]T, error) {
	hosts, err := bindHosts(p.Bind)
	if err != nil {
		return nil, fmt.Errorf("bind %s port %d@%s: %w", network, p.Number, p.Bind, err)
	}
	var out []T
	var missing error
	for _, host := range hosts {
		s, err := bind(net.JoinHostPort(host, fmt.Sprint(p.Number)))
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
			missing = err
		case err != nil:
			return nil, fmt.Errorf("bind %s port %d@%s: %w", network, p.Number, p.Bind, err)
		default:
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("bind %s port %d@%s: %w", network, p.Number, p.Bind, missing)
	}
	return out, nil
}

func bindHosts(b Bind) ([]string, error) {
	switch b {
	case BindLocalhost:
		return []string{"127.0.0.1", "::1"}, nil
	case BindPod:
		hosts := HostAddrs()
		if len(hosts) == 0 {
			return nil, errors.New("the host has no address but loopback")
		}
		return hosts, nil
	}
	return []string{""}, nil
}

// HostAddrs are the host's addresses, without loopback and link-local ones.
func HostAddrs() []string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []string
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr().String())
		}
	}
	return out
}

func addrPort(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	switch a := a.(type) {
	case *net.TCPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	case *net.UDPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
