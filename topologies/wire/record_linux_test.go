// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/topologies/wire"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestAsOrdinaryUser(t *testing.T) { nstest.AsOrdinaryUser(t, "^Test") }

const secret = "the quick brown fox jumps over the lazy dog"

// wires is a client and a server one link apart, with a listener on both families.
type wires struct {
	t              *testing.T
	client, server *netns.NS
	l              *net.TCPListener
}

func newWires(t *testing.T) *wires {
	w := &wires{t: t, client: nstest.New(t), server: nstest.New(t)}
	nstest.Connect(t, nstest.End{NS: w.client, Name: "c0", Addresses: []string{"10.9.0.1/24", "fd09::1/64"}},
		nstest.End{NS: w.server, Name: "s0", Addresses: []string{"10.9.0.2/24", "fd09::2/64"}})
	var err error
	w.l, err = w.server.ListenTCP(t.Context(), netip.MustParseAddrPort("[::]:0"), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.l.Close() })
	return w
}

func (w *wires) port() uint16 { return w.l.Addr().(*net.TCPAddr).AddrPort().Port() }

// connect makes a connection to the server's address.
func (w *wires) connect(host string) (client, server *net.TCPConn) {
	w.t.Helper()
	from := w.client
	if netip.MustParseAddr(host).IsLoopback() {
		from = w.server
	}
	c, err := from.DialTCP(w.t.Context(), netip.AddrPortFrom(netip.MustParseAddr(host), w.port()), netns.SocketOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := w.l.AcceptTCP()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close(); s.Close() })
	return c, s
}

// record runs traffic while the server's namespace is recorded.
func (w *wires) record(intf, filter string, traffic func()) (*wire.Capture, wire.Stats) {
	w.t.Helper()
	f, err := wire.ParseFilter(filter)
	if err != nil {
		w.t.Fatal(err)
	}
	var out bytes.Buffer
	var stats wire.Stats
	var recordErr error
	ctx, stop := context.WithCancel(w.t.Context())
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		recordErr = w.server.Do(func() (err error) {
			stats, err = wire.Record(ctx, &out, wire.RecordOptions{Interface: intf, Filter: f, Ready: func() { close(ready) }})
			return err
		})
	}()
	select {
	case <-ready:
		traffic()
	case <-done:
	}
	stop()
	<-done
	if recordErr != nil {
		w.t.Fatal(recordErr)
	}
	c, err := wire.Read(&out)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(c.Packets()) != stats.Packets {
		w.t.Errorf("%d packets read, stats %+v", len(c.Packets()), stats)
	}
	return c, stats
}

// exchange sends text up and down and closes both sides.
func exchange(t *testing.T, c, s net.Conn, up, down string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, way := range []struct {
		from, to net.Conn
		text     string
	}{{c, s, up}, {s, c, down}} {
		wg.Go(func() {
			if _, err := io.WriteString(way.from, way.text); err != nil {
				t.Error(err)
			}
		})
		if _, err := io.ReadFull(way.to, make([]byte, len(way.text))); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	c.Close()
	s.Close()
}

// TestPlainTextIsFound is the negative control of every claim that something is encrypted.
func TestPlainTextIsFound(t *testing.T) {
	w := newWires(t)
	for _, host := range []string{"10.9.0.2", "fd09::2", "127.0.0.1", "::1"} {
		c, _ := w.record("any", fmt.Sprintf("tcp port %d", w.port()), func() {
			up, down := w.connect(host)
			exchange(t, up, down, "GET / HTTP/1.1\r\nX: "+secret+"\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n")
		})
		flows := c.Flows()
		if len(flows) != 1 {
			t.Fatalf("%s: flows %v", host, flows)
		}
		f := flows[0]
		if !c.Contains([]byte(secret)) || len(c.Find([]byte(secret))) != 1 || c.Contains([]byte("never sent")) {
			t.Errorf("%s: the text was not found", host)
		}
		if !f.Opened || f.Dst.Addr() != netip.MustParseAddr(host) || f.Dst.Port() != w.port() || string(f.Payload(wire.ToClient)) != "HTTP/1.1 200 OK\r\n\r\n" {
			t.Errorf("%s: %v, down %q", host, f, f.Payload(wire.ToClient))
		}
		if _, err := wire.TLS(f); !errors.Is(err, wire.ErrNotTLS) {
			t.Errorf("%s: TLS = %v", host, err)
		}
	}
}

func TestTextAcrossPackets(t *testing.T) {
	w := newWires(t)
	c, _ := w.record("s0", "tcp", func() {
		up, down := w.connect("10.9.0.2")
		for i := range len(secret) {
			if _, err := io.WriteString(up, secret[i:i+1]); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(down, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	})
	inOne := slices.ContainsFunc(c.Packets(), func(p wire.Packet) bool { return strings.Contains(string(p.Payload), "quick") })
	if inOne || !c.Contains([]byte(secret)) {
		t.Errorf("in one packet: %t; found: %t", inOne, c.Contains([]byte(secret)))
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"in-the-clear.example"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestTLS compares what an onlooker sees of TLS 1.3, of 1.2, and of a client that names its server.
func TestTLS(t *testing.T) {
	w := newWires(t)
	server := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert}
	for name, c := range map[string]struct {
		client     *tls.Config
		serverName string
		tls13      bool
	}{
		"1.3":              {client: &tls.Config{NextProtos: []string{"h2"}}, tls13: true},
		"1.3 with a retry": {client: &tls.Config{NextProtos: []string{"h2"}, CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP521}}, tls13: true},
		"1.3 with SNI":     {client: &tls.Config{NextProtos: []string{"h2"}, ServerName: "cart.shop"}, serverName: "cart.shop", tls13: true},
		"1.2":              {client: &tls.Config{NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12}},
	} {
		t.Run(name, func(t *testing.T) {
			config := c.client.Clone()
			config.InsecureSkipVerify = true
			serverConfig := server.Clone()
			if strings.Contains(name, "retry") {
				serverConfig.CurvePreferences = []tls.CurveID{tls.CurveP521}
			}
			got, _ := w.record("any", "", func() {
				up, down := w.connect("fd09::2")
				exchange(t, tls.Client(up, config), tls.Server(down, serverConfig), secret, strings.Repeat(secret, 1000))
			})
			flows := got.To(w.port())
			if len(flows) != 1 || got.Contains([]byte(secret)) {
				t.Fatalf("flows %v; readable: %t", got.Flows(), got.Contains([]byte(secret)))
			}
			info, err := wire.TLS(flows[0])
			if err != nil {
				t.Fatal(err)
			}
			if info.TLS13() != c.tls13 || info.ServerName != c.serverName || !slices.Equal(info.ALPN, []string{"h2"}) || info.Truncated {
				t.Errorf("%+v", info)
			}
			if inClear := got.Contains([]byte("in-the-clear.example")); inClear == c.tls13 {
				t.Errorf("the certificate is readable: %t", inClear)
			}
			if info.Encrypted[wire.ToClient] < int64(1000*len(secret)) || info.CipherSuite == 0 {
				t.Errorf("%+v", info)
			}
		})
	}
}

func TestFilterIsKept(t *testing.T) {
	w := newWires(t)
	c, stats := w.record("any", "udp", func() {
		up, down := w.connect("10.9.0.2")
		exchange(t, up, down, secret, "")
	})
	if stats.Packets != 0 || c.Contains([]byte(secret)) {
		t.Errorf("%d packets", stats.Packets)
	}
}

// Of a connection's life only its ends are recorded, whichever family; with its bytes too, the filter would be no good.
func TestControlPackets(t *testing.T) {
	w := newWires(t)
	for _, host := range []string{"10.9.0.2", "fd09::2"} {
		c, stats := w.record("any", "syn or fin or rst", func() { // neighbours find each other by ICMPv6
			up, down := w.connect(host)
			exchange(t, up, down, secret, secret)
		})
		seen := map[string]bool{}
		for _, p := range c.Packets() {
			seen[p.Flags] = true
		}
		if !seen["SYN"] || !seen["SYN ACK"] || !seen["FIN ACK"] || seen["ACK"] || stats.Packets > 6 || c.Contains([]byte(secret)) {
			t.Errorf("%s: %v, %+v", host, seen, stats)
		}
	}
}

// A recording of control packets has a small ring, which fills by time: it must come round.
func TestControlPacketsForLong(t *testing.T) {
	w := newWires(t)
	made := 0
	c, stats := w.record("any", "syn", func() {
		const rounds = 100 * time.Millisecond // a block is handed over after 8 ms, and there are 4
		for end := time.Now().Add(rounds); time.Now().Before(end); made++ {
			up, down := w.connect("10.9.0.2")
			exchange(t, up, down, secret, secret)
		}
	})
	if stats.Drops != 0 || len(c.Packets()) != 2*made {
		t.Errorf("%d connections: %+v", made, stats)
	}
}

// TestBulk holds that a stream is read as it was sent, or that its recording says that packets were lost.
func TestBulk(t *testing.T) {
	w := newWires(t)
	const size = 24 << 20
	up := make([]byte, size)
	if _, err := rand.Read(up); err != nil {
		t.Fatal(err)
	}
	c, stats := w.record("s0", "tcp", func() {
		from, to := w.connect("10.9.0.2")
		exchange(t, from, to, string(up), "done")
	})
	flows := c.Flows()
	if len(flows) != 1 {
		t.Fatalf("flows %v", flows)
	}
	got, missing := flows[0].Payload(wire.ToServer), flows[0].Missing(wire.ToServer)
	if !bytes.HasPrefix(up, got) {
		t.Error("the stream is not what was sent")
	}
	if complete := len(got) == size && missing == 0; !complete && stats.Drops == 0 {
		t.Errorf("of %d bytes sent, %d read, %d missing, and no drops", size, len(got), missing)
	}
	t.Logf("%d packets, %d drops", stats.Packets, stats.Drops)
}

func TestUnknownInterface(t *testing.T) {
	n := nstest.New(t)
	err := n.Do(func() error {
		_, err := wire.Record(t.Context(), io.Discard, wire.RecordOptions{Interface: "eth7"})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), `no interface "eth7" here; there are lo`) {
		t.Errorf("Record = %v", err)
	}
}

func TestReadRefusesDamage(t *testing.T) {
	w := newWires(t)
	var out bytes.Buffer
	ctx, stop := context.WithCancel(t.Context())
	err := w.server.Do(func() error {
		_, err := wire.Record(ctx, &out, wire.RecordOptions{Ready: func() {
			up, down := w.connect("127.0.0.1")
			exchange(t, up, down, secret, secret)
			stop()
		}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	whole := out.Bytes()
	if _, err := wire.Read(bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{3, len(whole) / 2} {
		if _, err := wire.Read(bytes.NewReader(whole[:cut])); err == nil {
			t.Errorf("the first %d of %d bytes read as a recording", cut, len(whole))
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x0a\x0d\x0d\x0a\x1c\x00\x00\x00\x4d\x3c\x2b\x1a\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x1c\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := wire.Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, flow := range c.Flows() {
			_, _ = wire.TLS(flow)
		}
	})
}
