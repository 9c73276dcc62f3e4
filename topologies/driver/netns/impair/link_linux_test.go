// SPDX-License-Identifier: Apache-2.0

package impair

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestAsOrdinaryUser(t *testing.T) { nstest.AsOrdinaryUser(t, "^TestLink") }

// bench is three hosts on a bridge.
type bench struct {
	t     *testing.T
	root  *netns.NS
	hosts [3]*netns.NS
	addrs [3][]netip.Addr
	ports [3]string
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, root: nstest.New(t), ports: [3]string{"port1", "port2", "port3"}}
	u := nodenet.Underlay{Bridge: "br0", Subnets: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/24"), netip.MustParsePrefix("fd00:64::/64")}}
	if err := u.Create(t.Context(), b.root); err != nil {
		t.Fatal(err)
	}
	for i := range b.hosts {
		b.hosts[i] = nstest.New(t)
		addrs, err := u.Address(i + 1)
		if err == nil {
			b.addrs[i] = addrs
			err = u.Attach(t.Context(), b.root, b.hosts[i], nodenet.Member{Port: b.ports[i], Addresses: addrs})
		}
		if err != nil {
			t.Fatal(err)
		}
		b.echo(b.hosts[i])
	}
	return b
}

const port = 7

func (b *bench) echo(n *netns.NS) {
	l, err := n.ListenTCP(b.t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.SocketOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				c.Close()
			})
		}
	})
	b.t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

// impair makes the link between the first two hosts worse in both directions.
func (b *bench) impair(there, back lab.Impairment) *Link {
	b.t.Helper()
	var ds []Direction
	for n, i := range []lab.Impairment{there, back} {
		mac, err := Address(Device{b.hosts[1-n], nodenet.UnderlayLink})
		if err != nil {
			b.t.Fatal(err)
		}
		ds = append(ds, Direction{Impairment: i, Path: Path{
			In: Device{b.root, b.ports[n]}, Out: Device{b.root, b.ports[1-n]}, To: mac, Sender: Device{b.hosts[n], nodenet.UnderlayLink},
		}})
	}
	l, err := Open(ds...)
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

// trip connects from the first host to another and sends data there and back.
func (b *bench) trip(to int, v6 bool, size int) (connect, whole time.Duration) {
	b.t.Helper()
	addr := b.addrs[to][0]
	if v6 {
		addr = b.addrs[to][1]
	}
	began := time.Now()
	c, err := b.hosts[0].DialTCP(b.t.Context(), netip.AddrPortFrom(addr, port), netns.SocketOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	connect = time.Since(began)
	data := make([]byte, size)
	_, _ = rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	got := make([]byte, size)
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		b.t.Fatal(err)
	}
	_, err = io.ReadFull(c, got)
	if sendErr := <-sent; err != nil || sendErr != nil || !bytes.Equal(data, got) {
		b.t.Fatalf("%d bytes to %s: %v, %v, equal %v", size, addr, sendErr, err, bytes.Equal(data, got))
	}
	return connect, time.Since(began)
}

const delay = 20 * time.Millisecond

// quick reports whether a connection is up in less than the delay: once of a few times, for the machine may have other work.
func (b *bench) quick(to int, v6 bool) bool {
	b.t.Helper()
	for range 5 {
		if connect, _ := b.trip(to, v6, 1); connect < delay {
			return true
		}
	}
	return false
}

func TestLinkDelaysOneNeighbourOnly(t *testing.T) {
	b := newBench(t)
	for _, v6 := range []bool{false, true} {
		if !b.quick(1, v6) {
			t.Fatal("control: a good link is slow")
		}
	}
	l := b.impair(lab.Impairment{Delay: delay}, lab.Impairment{Delay: 2 * delay})
	for _, v6 := range []bool{false, true} {
		connect, whole := b.trip(1, v6, 1)
		if connect < 3*delay || whole < 6*delay {
			t.Errorf("IPv6 %v: %s to connect, %s for one trip more; want at least %s and %s", v6, connect, whole, 3*delay, 6*delay)
		}
		if !b.quick(2, v6) {
			t.Error("control: another neighbour is slow too")
		}
	}
	passed, err := l.Passed()
	if err != nil || passed[0].Packets < 6 || passed[1].Packets < 4 || passed[0].Lost+passed[0].Overflowed > 0 {
		t.Errorf("passed %+v, %v", passed, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if !b.quick(1, false) {
		t.Error("restored, it is slow")
	}
}

// Whatever is lost, doubled or out of order, TCP makes good, with the checksums that the kernel left to the device.
func TestLinkLosesAndReorders(t *testing.T) {
	b := newBench(t)
	bad := lab.Impairment{Delay: 5 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.05, Duplicate: 0.02, Reorder: 0.05, Seed: 1}
	l := b.impair(bad, bad)
	const size = 1 << 20
	b.trip(1, false, size)
	b.trip(1, true, size)
	passed, err := l.Passed()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range passed {
		if p.Packets < size/1500 {
			t.Errorf("%d packets for %d bytes: they were not a wire's", p.Packets, p.Bytes)
		}
		if p.Lost == 0 || p.Duplicated == 0 || p.Reordered == 0 || p.Overflowed > 0 || p.Lost > p.Packets/5 {
			t.Errorf("passed %+v", p)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// A connection lives through the beginning and the end of an impairment.
func TestLinkChangesUnderAConnection(t *testing.T) {
	b := newBench(t)
	c, err := b.hosts[0].DialTCP(t.Context(), netip.AddrPortFrom(b.addrs[1][0], port), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange := func() {
		t.Helper()
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		exchange()
		l := b.impair(lab.Impairment{Delay: time.Millisecond}, lab.Impairment{})
		exchange()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
}

func TestOpenFailsWhole(t *testing.T) {
	b := newBench(t)
	good := Path{In: Device{b.root, "port1"}, Out: Device{b.root, "port2"}, To: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Sender: Device{b.hosts[0], "eth0"}}
	bad := good
	bad.Out.Name = "none0"
	if _, err := Open(Direction{Path: good}, Direction{Path: bad}); err == nil {
		t.Fatal("a device that is not there was opened")
	}
	l, err := Open(Direction{Path: good}) // nothing of the first is left in the way
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
