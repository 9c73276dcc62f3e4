// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

var slow = flag.Bool("hbone.slow", false, "run the tests that last for minutes at their full length")

// budget bounds every wait for something that must happen.
const budget = 20 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if leaked := leakedGoroutines(); code == 0 && leaked != "" {
		fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", leaked)
		code = 1
	}
	os.Exit(code)
}

// leakedGoroutines waits for the package's goroutines to end and returns the stacks of those that did not.
func leakedGoroutines() string {
	for deadline := time.Now().Add(budget); ; runtime.Gosched() {
		buf := make([]byte, 1<<20)
		var leaked [][]byte
		for _, g := range bytes.Split(buf[:runtime.Stack(buf, true)], []byte("\n\n")) {
			if bytes.Contains(g, []byte("dataplane/hbone.")) && !bytes.Contains(g, []byte("TestMain")) {
				leaked = append(leaked, g)
			}
		}
		if len(leaked) == 0 {
			return ""
		}
		if time.Now().After(deadline) {
			return string(bytes.Join(leaked, []byte("\n\n")))
		}
	}
}

// testPKI is one root and a certificate that serves both ends.
type testPKI struct{ server, client *tls.Config }

var pki = sync.OnceValue(func() testPKI {
	rootKey, root := mustCert(nil, nil, true)
	key, leaf := mustCert(root, rootKey, false)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	cert := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	server := &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
	}
	client := &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: "test",
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}
	return testPKI{server, client}
})

func mustCert(parent *x509.Certificate, parentKey *ecdsa.PrivateKey, ca bool) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"test"}, IsCA: ca, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return key, cert
}

// tcpPair returns the two ends of a TCP connection over loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l := listen(t)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

func addrOf(l net.Listener) netip.AddrPort { return addrPort(l.Addr()) }

// serveApps accepts connections for an application and runs handle for each; it returns the address. When the test has ended,
// those that are left are closed, as what they wait for may end only after that.
func serveApps(t testing.TB, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l := listen(t)
	var g sync.WaitGroup
	var mu sync.Mutex
	live := make(map[*net.TCPConn]bool)
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			live[c] = true
			mu.Unlock()
			g.Go(func() {
				handle(c)
				mu.Lock()
				delete(live, c)
				mu.Unlock()
			})
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-accepted
		mu.Lock()
		for c := range live {
			c.Close()
		}
		mu.Unlock()
		g.Wait()
	})
	return addrOf(l)
}

func echo(c *net.TCPConn) {
	defer c.Close()
	io.Copy(c, c)
	c.CloseWrite()
}

// serverConfig answers every CONNECT by connecting to its authority.
func serverConfig() ServerConfig {
	return ServerConfig{
		Config:  Config{Guard: NewGuard()}, // other tests misbehave on purpose
		TLS:     func(context.Context) (*tls.Config, error) { return pki().server, nil },
		Handler: connectHandler,
	}
}

func connectHandler(ctx context.Context, in *Inbound) {
	var d net.Dialer
	up, err := d.DialContext(ctx, "tcp", in.Authority)
	if err != nil {
		in.Refuse(503)
		return
	}
	in.Accept(ctx, up.(*net.TCPConn))
}

// startServer runs a server until the test ends.
func startServer(t testing.TB, cfg ServerConfig) (*Server, netip.AddrPort) {
	t.Helper()
	s := NewServer(cfg)
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		ended, cut := context.WithCancel(context.Background())
		cut() // a test that cares for draining has done it by now
		s.Shutdown(ended)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, addrOf(l)
}

// clientConfig connects to where the key says.
func clientConfig() PoolConfig {
	return PoolConfig{
		Dial: func(ctx context.Context, k Key) (*net.TCPConn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", k.Addr.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		TLS: func(context.Context, Key) (*tls.Config, error) { return pki().client, nil },
	}
}

// startPool runs a pool until the test ends.
func startPool(t testing.TB, cfg PoolConfig) *Pool {
	t.Helper()
	p := NewPool(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return p
}

// eventually waits for cond.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(budget); !cond(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func testContext(t testing.TB) context.Context {
	d := 3 * budget
	if *slow {
		d = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
