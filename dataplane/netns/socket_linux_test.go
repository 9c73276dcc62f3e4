// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func listen(t testing.TB, n *netns.NS, addr string, o netns.SocketOptions) *net.TCPListener {
	t.Helper()
	l, err := n.ListenTCP(t.Context(), netip.MustParseAddrPort(addr), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func port(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// pair is client and router, one veth apart, on both families.
func pair(t *testing.T) (client, server *netns.NS) {
	client, server = nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: client, Name: "c0", Addresses: []string{"10.9.0.1/24", "fd09::1/64"}},
		nstest.End{NS: server, Name: "s0", Addresses: []string{"10.9.0.2/24", "fd09::2/64"}})
	return client, server
}

func TestWildcardTakesBothFamilies(t *testing.T) {
	client, server := pair(t)
	l := listen(t, server, "[::]:0", netns.SocketOptions{})
	for _, to := range []string{"10.9.0.2", "fd09::2", "::ffff:10.9.0.2"} {
		addr := netip.AddrPortFrom(netip.MustParseAddr(to), port(l))
		c, err := client.DialTCP(t.Context(), addr, netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		in, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		if got := in.RemoteAddr().String(); got != c.LocalAddr().String() && !strings.HasSuffix(got, c.LocalAddr().String()) {
			t.Errorf("%s: the server sees %s, the client is %s", to, got, c.LocalAddr())
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		if b, err := io.ReadAll(in); err != nil || string(b) != "hello" {
			t.Errorf("%s: read %q, %v", to, b, err)
		}
		c.Close()
		in.Close()
	}
}

func TestDialFromSpoofedAndBoundSources(t *testing.T) {
	client, server := pair(t)
	l := listen(t, server, "[::]:0", netns.SocketOptions{})
	for _, c := range []struct{ to, via, source string }{
		{"10.9.0.2", "10.9.0.1", "10.77.0.5:0"},
		{"fd09::2", "fd09::1", "[fd77::5]:0"},
	} {
		o := netns.SocketOptions{Mark: 0x539, Transparent: true, Freebind: true, BindAddrNoPort: true, Source: netip.MustParseAddrPort(c.source)}
		// The server answers the stranger through the client, which must find the connection as its own.
		nstest.In(t, server, func() error { return routeVia(o.Source.Addr(), netip.MustParseAddr(c.via)) })
		nstest.In(t, client, func() error { return deliverLocally(o.Source.Addr()) })
		addr := netip.AddrPortFrom(netip.MustParseAddr(c.to), port(l))
		c, err := client.DialTCP(t.Context(), addr, o)
		if err != nil {
			t.Fatal(err)
		}
		in, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		if got := in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != o.Source.Addr() {
			t.Errorf("the server sees %s, want %s", got, o.Source.Addr())
		}
		if got := intOption(t, c, unix.SOL_SOCKET, unix.SO_MARK); got != 0x539 {
			t.Errorf("mark %#x, want 0x539", got)
		}
		c.Close()
		in.Close()
	}
}

func TestSourceOfOtherFamily(t *testing.T) {
	client := nstest.New(t)
	_, err := client.DialTCP(t.Context(), netip.MustParseAddrPort("127.0.0.1:1"), netns.SocketOptions{Source: netip.MustParseAddrPort("[::1]:0")})
	if err == nil || !strings.Contains(err.Error(), "other address family") {
		t.Errorf("DialTCP = %v", err)
	}
}

func intOption(t *testing.T, c syscall.Conn, level, id int) int {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var v int
	if e := rc.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, id) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return v
}

func TestOptionsReachAcceptedConnections(t *testing.T) {
	n := nstest.New(t)
	o := netns.SocketOptions{
		Mark: 0x539, ReusePort: true, UserTimeout: 7 * time.Second,
		KeepAlive: net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 60 * time.Second, Count: 9},
	}
	l := listen(t, n, "[::]:0", o)
	c, err := n.DialTCP(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(l)), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for name, conn := range map[string]*net.TCPConn{"dialled": c, "accepted": in} {
		for _, w := range []struct {
			name            string
			level, id, want int
		}{
			{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0x539},
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 180},
			{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 60},
			{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
			{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 7000},
			{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
		} {
			if got := intOption(t, conn, w.level, w.id); got != w.want {
				t.Errorf("%s %s = %d, want %d", name, w.name, got, w.want)
			}
		}
	}
	plain, err := n.DialTCP(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(l)), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if got := intOption(t, plain, unix.SOL_SOCKET, unix.SO_KEEPALIVE); got != 0 {
		t.Errorf("zero options: SO_KEEPALIVE = %d, want 0", got)
	}
}

func TestErrorsNameAddressAndOperation(t *testing.T) {
	n := nstest.New(t)
	l := listen(t, n, "127.0.0.1:0", netns.SocketOptions{})
	taken := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(l))
	_, err := n.ListenTCP(t.Context(), taken, netns.SocketOptions{})
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "listen on "+taken.String()) || !strings.Contains(err.Error(), "is taken") {
		t.Errorf("second listener: %v", err)
	}
	l.Close()
	_, err = n.DialTCP(t.Context(), taken, netns.SocketOptions{})
	if !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), "connect to "+taken.String()) {
		t.Errorf("dial a closed port: %v", err)
	}
	_, err = n.DialTCP(t.Context(), netip.MustParseAddrPort("192.0.2.1:80"), netns.SocketOptions{})
	if !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("dial without a route: %v", err)
	}
	_, err = n.ListenTCP(t.Context(), netip.MustParseAddrPort("192.0.2.1:80"), netns.SocketOptions{})
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("listen on a foreign address: %v", err)
	}
	if _, err := n.DialTCP(t.Context(), netip.AddrPort{}, netns.SocketOptions{}); err == nil {
		t.Error("dial the zero address: no error")
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	client, server := pair(t)
	// Nobody answers for the address, and the link never says so.
	nstest.In(t, client, func() error { return staticNeighbour("c0", "10.9.0.9") })
	_ = server
	for name, makeCtx := range map[string]func() (context.Context, context.CancelFunc, error){
		"deadline": func() (context.Context, context.CancelFunc, error) {
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
			return ctx, stop, context.DeadlineExceeded
		},
		"cancel": func() (context.Context, context.CancelFunc, error) {
			ctx, stop := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, stop)
			return ctx, stop, context.Canceled
		},
	} {
		ctx, stop, want := makeCtx()
		c, err := client.DialTCP(ctx, netip.MustParseAddrPort("10.9.0.9:80"), netns.SocketOptions{})
		stop()
		if !errors.Is(err, want) {
			t.Errorf("%s: DialTCP = %v, %v, want %v", name, c, err, want)
		}
	}
}

func TestListenUDP(t *testing.T) {
	client, server := pair(t)
	u, err := server.ListenUDP(t.Context(), netip.MustParseAddrPort("[::]:0"), netns.SocketOptions{Mark: 0x539})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	from, err := client.ListenUDP(t.Context(), netip.MustParseAddrPort("10.9.0.1:0"), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), u.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	if _, err := from.WriteToUDPAddrPort([]byte("ping"), to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	m, src, err := u.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:m]) != "ping" || src.Addr().Unmap() != netip.MustParseAddr("10.9.0.1") {
		t.Errorf("received %q from %v, %v", buf[:m], src, err)
	}
}

func BenchmarkDialTCP(b *testing.B) {
	n := nstest.New(b)
	l := listen(b, n, "127.0.0.1:0", netns.SocketOptions{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			c.SetLinger(0)
			c.Close()
		}
	}()
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(l))
	b.ReportAllocs()
	for b.Loop() {
		c, err := n.DialTCP(b.Context(), addr, netns.SocketOptions{Mark: 0x539})
		if err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, os.ErrClosed) {
			b.Fatal(err)
		}
		if c != nil {
			c.Close()
		}
	}
	l.Close()
	<-done
}

func BenchmarkDo(b *testing.B) {
	n := nstest.New(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := n.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
