// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"
)

// startServer serves every protocol on loopback, each on a port of the kernel's choice, and gives the ports.
func startServer(t *testing.T) map[string]int {
	t.Helper()
	cfg := Config{Ports: map[string][]Port{}, Workload: "cart", Namespace: "shop", IP: "10.0.0.1"}
	for _, proto := range protocols {
		cfg.Ports[proto] = []Port{{Number: 0, Bind: BindAny}}
	}
	s := NewServer(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-done:
		done <- err
		t.Fatalf("Run: %v", err)
	}
	ports := map[string]int{}
	for _, proto := range protocols {
		ports[proto] = int(addrPort(s.Addrs(proto)[0]).Port())
	}
	return ports
}

func TestCalls(t *testing.T) {
	ports := startServer(t)
	const mb = 1 << 20
	for _, tt := range []struct {
		name, scheme, proto, path string
		o                         Options
		sent, recv                int64 // recv 0: not checked
		rounds                    int
		noSeen                    bool
	}{
		{name: "http", scheme: "http", proto: HTTP, path: "/any?x=1"},
		{name: "http post", scheme: "http", proto: HTTP, o: Options{Size: mb + 1}, sent: mb + 1},
		{name: "http download", scheme: "http", proto: HTTP, o: Options{Download: 3 * mb}, recv: 3 * mb, noSeen: true},
		{name: "h2c", scheme: "h2c", proto: H2C},
		{name: "h2c post", scheme: "h2c", proto: H2C, o: Options{Size: mb}, sent: mb},
		{name: "https", scheme: "https", proto: TLS},
		{name: "https h2", scheme: "https", proto: TLS, o: Options{HTTP2: true}},
		{name: "ws", scheme: "ws", proto: HTTP},
		{name: "ws rounds", scheme: "ws", proto: HTTP, o: Options{PingPong: 5, Size: 1000}, sent: 5000, recv: 5000, rounds: 5},
		{name: "wss", scheme: "wss", proto: TLS, o: Options{Size: mb}, sent: mb, recv: mb, rounds: 1},
		{name: "grpc", scheme: "grpc", proto: GRPC},
		{name: "grpc size", scheme: "grpc", proto: GRPC, o: Options{Size: mb}, sent: mb},
		{name: "grpc stream", scheme: "grpc", proto: GRPC, o: Options{PingPong: 7}, sent: 7 * 64, recv: 7 * 64, rounds: 7, noSeen: true},
		{name: "tcp", scheme: "tcp", proto: TCP},
		{name: "tcp size", scheme: "tcp", proto: TCP, o: Options{Size: 20 * mb}, sent: 20 * mb, recv: 20 * mb},
		{name: "tcp rounds", scheme: "tcp", proto: TCP, o: Options{PingPong: 100, Size: 1}, sent: 100, recv: 100, rounds: 100},
		{name: "tcp silent", scheme: "tcp", proto: TCP, o: Options{Silent: 20 * time.Millisecond}},
		{name: "tcp half-close", scheme: "tcp", proto: TCP, o: Options{HalfClose: true, Size: mb, Download: 2 * mb}, sent: mb, recv: 2 * mb},
		{name: "tcp peer half-close", scheme: "tcp", proto: TCP, o: Options{PeerHalfClose: true, Size: 2 * mb, Download: mb}, sent: 2 * mb, recv: mb},
		{name: "tcp-first", scheme: "tcp-first", proto: TCPServerFirst, o: Options{Size: 10}, sent: 10, recv: 10},
		{name: "udp", scheme: "udp", proto: UDP},
		{name: "udp rounds", scheme: "udp", proto: UDP, o: Options{PingPong: 3, Size: 1200}, sent: 3600, recv: 3600, rounds: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := fmt.Sprintf("%s://127.0.0.1:%d%s", tt.scheme, ports[tt.proto], tt.path)
			res, err := Do(t.Context(), url, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			c := res.First()
			if res.OK != 1 || res.Failed != 0 || !c.OK || c.Error != "" {
				t.Fatalf("result: %+v", res)
			}
			if c.BytesSent != tt.sent || (tt.recv > 0 && c.BytesRecv != tt.recv) || c.Rounds != tt.rounds {
				t.Errorf("sent %d, received %d, rounds %d; want %d, %d, %d", c.BytesSent, c.BytesRecv, c.Rounds, tt.sent, tt.recv, tt.rounds)
			}
			if c.RemoteAddr.Port() != uint16(ports[tt.proto]) || c.Connect <= 0 || c.Latency < c.Connect {
				t.Errorf("remote %s, connect %s, latency %s", c.RemoteAddr, c.Connect, c.Latency)
			}
			if tt.noSeen {
				return
			}
			if c.Seen == nil || c.Seen.Workload != "cart" || c.Seen.Namespace != "shop" || c.Seen.IP != "10.0.0.1" {
				t.Fatalf("seen: %+v", c.Seen)
			}
			if c.Seen.RemoteAddr != c.LocalAddr {
				t.Errorf("the server saw %s, the caller was %s", c.Seen.RemoteAddr, c.LocalAddr)
			}
		})
	}
}

func TestSeenOfHTTP(t *testing.T) {
	ports := startServer(t)
	url := fmt.Sprintf("http://127.0.0.1:%d/some/path", ports[HTTP])
	res, err := Do(t.Context(), url, Options{Header: []string{"X-Test: yes", "Host: cart.shop"}, Method: http.MethodPut})
	if err != nil || res.OK != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	seen := res.First().Seen
	if seen.Method != http.MethodPut || seen.Path != "/some/path" || seen.Host != "cart.shop" || seen.Proto != "HTTP/1.1" || seen.Headers.Get("X-Test") != "yes" {
		t.Errorf("seen: %+v", seen)
	}
}

func TestKeepOpen(t *testing.T) {
	ports := startServer(t)
	for scheme, proto := range map[string]string{"http": HTTP, "h2c": H2C, "https": TLS, "ws": HTTP, "grpc": GRPC, "tcp": TCP, "tcp-first": TCPServerFirst, "udp": UDP} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%t", scheme, keep), func(t *testing.T) {
				res, err := Do(t.Context(), fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[proto]), Options{Count: 3, KeepOpen: keep})
				if err != nil || res.OK != 3 {
					t.Fatalf("%+v, %v", res, err)
				}
				local := map[string]bool{}
				for i, c := range res.Calls {
					local[c.LocalAddr.String()] = true
					if c.Reused != (keep && i > 0) {
						t.Errorf("call %d: reused %t", i, c.Reused)
					}
				}
				if want := map[bool]int{true: 1, false: 3}[keep]; len(local) != want {
					t.Errorf("%d connections, want %d", len(local), want)
				}
			})
		}
	}
}

func TestIntervalAndDuration(t *testing.T) {
	ports := startServer(t)
	res, err := Do(t.Context(), fmt.Sprintf("http://127.0.0.1:%d", ports[HTTP]), Options{
		Interval: 5 * time.Millisecond, Duration: 200 * time.Millisecond, Concurrency: 2,
	})
	// On a machine that is busy fewer calls begin in time, but never more, and none ends it early.
	if err != nil || res.Failed > 0 || res.OK < 1 || res.OK > 41 || res.Elapsed < 190*time.Millisecond {
		t.Errorf("%d good and %d failed calls in %s (%v) %v; want about 40 in 200 ms", res.OK, res.Failed, res.Elapsed, err, res.Errors)
	}
	if len(res.Calls) > KeptCalls || res.LatencyMax < res.LatencyP50 || res.LatencyP50 <= 0 {
		t.Errorf("%d calls kept, p50 %s, max %s", len(res.Calls), res.LatencyP50, res.LatencyMax)
	}
}

func TestFailures(t *testing.T) {
	ports := startServer(t)
	closed := closedPort(t)
	rst := misbehaving(t, func(c *net.TCPConn) { _ = c.SetLinger(0) })
	eof := misbehaving(t, func(*net.TCPConn) {})
	stuck := misbehaving(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	for _, tt := range []struct {
		name, url string
		o         Options
		want      Class
	}{
		{"refused", fmt.Sprintf("http://127.0.0.1:%d", closed), Options{}, ClassRefused},
		{"refused tcp", fmt.Sprintf("tcp://127.0.0.1:%d", closed), Options{}, ClassRefused},
		{"refused udp", fmt.Sprintf("udp://127.0.0.1:%d", closed), Options{}, ClassRefused},
		{"reset", fmt.Sprintf("tcp://127.0.0.1:%d", rst), Options{}, ClassReset},
		{"eof", fmt.Sprintf("tcp-first://127.0.0.1:%d", eof), Options{}, ClassEOF},
		{"eof http", fmt.Sprintf("http://127.0.0.1:%d", eof), Options{}, ClassEOF},
		{"timeout", fmt.Sprintf("tcp://127.0.0.1:%d", stuck), Options{Timeout: 50 * time.Millisecond}, ClassTimeout},
		{"timeout http", fmt.Sprintf("http://127.0.0.1:%d", stuck), Options{Timeout: 50 * time.Millisecond}, ClassTimeout},
		{"timeout large", fmt.Sprintf("tcp://127.0.0.1:%d", stuck), Options{Timeout: 50 * time.Millisecond, Size: 64 << 20}, ClassTimeout},
		{"resolve", "http://name.invalid", Options{Timeout: 5 * time.Second}, ClassResolve},
		{"no address of the family", "http://127.0.0.1", Options{Family: 6}, ClassResolve},
		{"tls", fmt.Sprintf("https://127.0.0.1:%d", ports[HTTP]), Options{}, ClassTLS},
		{"status", fmt.Sprintf("http://127.0.0.1:%d/status/503", ports[HTTP]), Options{}, ClassStatus},
		{"ws status", fmt.Sprintf("ws://127.0.0.1:%d/status/404", ports[HTTP]), Options{}, ClassStatus},
		{"not a report", fmt.Sprintf("tcp-first://127.0.0.1:%d", banner(t)), Options{}, ClassMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := Do(t.Context(), tt.url, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			c := res.First()
			if tt.want != ClassResolve && !c.RemoteAddr.IsValid() {
				t.Error("no remote address")
			}
			if c.Class != tt.want || c.OK || res.Failed != 1 || res.Errors[tt.want] != 1 || c.Error == "" {
				t.Errorf("class %q (%s), want %q; %+v", c.Class, c.Error, tt.want, res.Errors)
			}
		})
	}
}

func closedPort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return int(addrPort(l.Addr()).Port())
}

// misbehaving accepts connections, reads a little, does something, and closes.
func misbehaving(t *testing.T, do func(*net.TCPConn)) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				_, _ = c.Read(make([]byte, 1<<10))
				_ = c.SetReadDeadline(time.Time{})
				do(c.(*net.TCPConn))
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return int(addrPort(l.Addr()).Port())
}

func banner(t *testing.T) int {
	return misbehaving(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "220 hello\n") })
}

func TestManyShortConnections(t *testing.T) {
	ports := startServer(t)
	res, err := Do(t.Context(), "tcp://127.0.0.1:"+strconv.Itoa(ports[TCP]), Options{Count: 1000, Concurrency: 8, Size: 1})
	if err != nil || res.OK != 1000 || res.Failed != 0 {
		t.Errorf("%d good, %d failed: %v %v", res.OK, res.Failed, res.Errors, err)
	}
}

func TestServerEndsWithOpenConnections(t *testing.T) {
	s := NewServer(Config{Ports: map[string][]Port{TCP: {{Bind: BindLocalhost}}, HTTP: {{Bind: BindLocalhost}}}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Ready()
	for _, proto := range []string{TCP, HTTP} {
		c, err := net.Dial("tcp", s.Addrs(proto)[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	calls := make(chan Result, 1)
	go func() {
		res, _ := Do(t.Context(), "ws://"+s.Addrs(HTTP)[0].String(), Options{PingPong: 1 << 30, Timeout: time.Minute})
		calls <- res
	}()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if res := <-calls; res.Failed != 1 {
		t.Errorf("a call outlived its server: %+v", res)
	}
}

func TestBindTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := addrPort(l.Addr()).Port()
	err = NewServer(Config{Ports: map[string][]Port{TCP: {{Number: port, Bind: BindLocalhost}}}}).Run(t.Context())
	if want := fmt.Sprintf("bind tcp port %d@localhost", port); err == nil || len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
		t.Errorf("Run: %v, want %s: …", err, want)
	}
}
