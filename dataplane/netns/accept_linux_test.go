// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

func TestAcceptor(t *testing.T) {
	client, server := pair(t)
	o := netns.SocketOptions{Mark: 0x539}
	l := listen(t, server, "[::]:0", o)
	a, err := netns.NewAcceptor(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	for _, to := range []string{"10.9.0.2", "fd09::2"} {
		addr := netip.AddrPortFrom(netip.MustParseAddr(to), port(l))
		c, err := client.DialFile(t.Context(), addr, netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		in, peer, err := a.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if local := netns.Local(c); peer != local {
			t.Errorf("%s: the server sees %s, the client is %s", to, peer, local)
		}
		if got := netns.Local(in).Addr().Unmap(); got != addr.Addr() {
			t.Errorf("%s: the server's end is %s", to, got)
		}
		if mark, now := intOption(t, in, unix.SOL_SOCKET, unix.SO_MARK), intOption(t, in, unix.IPPROTO_TCP, unix.TCP_NODELAY); mark != 0x539 || now != 1 {
			t.Errorf("mark %#x, TCP_NODELAY %d", mark, now)
		}
		tcp, err := o.AsTCP(in)
		if err != nil {
			t.Fatal(err)
		}
		netns.ResetOnClose(tcp)
		tcp.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: the end is %v, want a reset", to, err)
		}
	}
}

// TestAcceptorStops: what comes after that is the listener's.
func TestAcceptorStops(t *testing.T) {
	client, server := pair(t)
	l := listen(t, server, "10.9.0.2:0", netns.SocketOptions{})
	a, err := netns.NewAcceptor(l)
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error)
	go func() {
		_, _, err := a.Accept()
		stopped <- err
	}()
	a.Stop()
	if err := <-stopped; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Accept = %v", err)
	}
	c, err := client.DialFile(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), port(l)), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	f, err := netns.AsFile(in)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if b, err := io.ReadAll(f); err != nil || len(b) > 0 {
		t.Errorf("read %q, %v", b, err)
	}
	f.Close()
}
