// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestShutdownIsGracefulForPeers: GOAWAY comes in two steps (RFC 9113 §6.8): nothing is refused before the peer has
// seen the first, and streams that run go on to their end.
func TestShutdownIsGracefulForPeers(t *testing.T) {
	srv, hop := startServer(t, serverConfig())
	app := serveApps(t, echo)
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	peer.connect(1, app.String())
	peer.expect(http2.FrameHeaders)

	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(testContext(t)) }()
	f, err := peer.fr.ReadFrame()
	for ; err == nil && f.Header().Type != http2.FrameGoAway; f, err = peer.fr.ReadFrame() {
	}
	first, _ := f.(*http2.GoAwayFrame)
	if first == nil || first.LastStreamID != 1<<31-1 || first.ErrCode != http2.ErrCodeNo {
		t.Fatalf("first GOAWAY %v, %v", f, err)
	}
	peer.connect(3, app.String()) // was on its way when GOAWAY was sent
	var second *http2.GoAwayFrame
	for answered := false; !answered || second == nil; {
		f, err := peer.next(http2.FrameGoAway, http2.FrameHeaders) // answers the PING between the two steps
		if err != nil {
			t.Fatal(err)
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			second = g
		} else if answered = true; f.Header().StreamID != 3 {
			t.Fatalf("answer on stream %d", f.Header().StreamID)
		}
	}
	if second.LastStreamID != 3 || second.ErrCode != http2.ErrCodeNo {
		t.Errorf("second GOAWAY %v", second)
	}
	peer.fr.WriteData(1, true, []byte("to the end"))
	if d, err := peer.next(http2.FrameData); err != nil || string(d.(*http2.DataFrame).Data()) != "to the end" {
		t.Errorf("stream 1 after GOAWAY: %v, %v", d, err)
	}
	select {
	case err := <-done:
		t.Errorf("Shutdown returned %v with stream 3 open", err)
	default:
	}
	peer.fr.WriteData(3, true, nil)
	if _, err := peer.next(http2.FrameSettings); !errors.Is(err, io.EOF) {
		t.Errorf("connection ended with %v", err)
	}
	peer.Close()
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestConnectionStartsBeforeItIsListed: whatever Shutdown does to a connection comes after its SETTINGS.
func TestConnectionStartsBeforeItIsListed(t *testing.T) {
	cfg := serverConfig()
	var srv *Server
	ready := make(chan struct{})
	cfg.TLS = func(context.Context) (*tls.Config, error) {
		<-ready
		srv.mu.Lock() // keeps the connection from being listed
		return pki().server, nil
	}
	srv, hop := startServer(t, cfg)
	close(ready)
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	f, err := peer.fr.ReadFrame()
	srv.mu.Unlock()
	if err != nil || f.Header().Type != http2.FrameSettings {
		t.Errorf("first frame %v, %v", f, err)
	}
}

// TestShutdownCutsAtItsDeadline also checks that the application of a cut tunnel sees a reset, not an end.
func TestShutdownCutsAtItsDeadline(t *testing.T) {
	srv, hop := startServer(t, serverConfig())
	p := startPool(t, clientConfig())
	tun := openTunnel(t, p, hop, serveApps(t, echo))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	if r := tun.end(t); r.Err == nil || !r.Reset {
		t.Errorf("result %+v", r)
	}
}

// TestStreamAboveGoAwayIsReopened: a stream that the server's GOAWAY leaves out goes to a new connection, once.
func TestStreamAboveGoAwayIsReopened(t *testing.T) {
	opened := make(chan int, 8)
	var conns atomic.Int32
	hop := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		conn := int(conns.Add(1))
		peer := newRawPeer(c, pki().server)
		peer.handshakeServer()
		id := peer.expect(http2.FrameHeaders).StreamID
		opened <- conn
		if conn == 1 {
			peer.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		} else {
			peer.respond(id, "200", true)
		}
		peer.next() // until the client closes
	})
	p := startPool(t, clientConfig())
	s, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: "x:1"})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	s.Reset(http2.ErrCodeCancel)
	if got := []int{<-opened, <-opened}; !slices.Equal(got, []int{1, 2}) {
		t.Errorf("stream was sent on connections %v", got)
	}
}

// TestServerJudgesFrames sends what RFC 9113 forbids and expects the named error, on the stream or the connection.
func TestServerJudgesFrames(t *testing.T) {
	u32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	raw := func(kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) func(*rawPeer) {
		return func(p *rawPeer) { p.fr.WriteRawFrame(kind, flags, id, payload) }
	}
	tests := []struct {
		name   string
		send   func(*rawPeer)
		stream bool // RST_STREAM on stream 1, not GOAWAY
		code   Code
	}{
		{"DATA on stream 0", raw(http2.FrameData, 0, 0, []byte("x")), false, http2.ErrCodeProtocol},
		{"DATA on an idle stream", raw(http2.FrameData, 0, 5, []byte("x")), false, http2.ErrCodeProtocol},
		{"DATA with too much padding", raw(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 0}), false, http2.ErrCodeProtocol},
		{"padded DATA without a length", raw(http2.FrameData, http2.FlagDataPadded, 1, nil), false, http2.ErrCodeFrameSize},
		{"RST_STREAM on an idle stream", raw(http2.FrameRSTStream, 0, 7, u32(8)), false, http2.ErrCodeProtocol},
		{"WINDOW_UPDATE on an idle stream", raw(http2.FrameWindowUpdate, 0, 9, u32(1)), false, http2.ErrCodeProtocol},
		{"WINDOW_UPDATE of 0 on the connection", raw(http2.FrameWindowUpdate, 0, 0, u32(0)), false, http2.ErrCodeProtocol},
		{"WINDOW_UPDATE of 0 on a stream", raw(http2.FrameWindowUpdate, 0, 1, u32(0)), true, http2.ErrCodeProtocol},
		{"connection window overflow", raw(http2.FrameWindowUpdate, 0, 0, u32(1<<31-1)), false, http2.ErrCodeFlowControl},
		{"stream window overflow", raw(http2.FrameWindowUpdate, 0, 1, u32(1<<31-1)), true, http2.ErrCodeFlowControl},
		{"WINDOW_UPDATE of 3 bytes", raw(http2.FrameWindowUpdate, 0, 1, []byte{0, 0, 1}), false, http2.ErrCodeFrameSize},
		{"PING of 7 bytes", raw(http2.FramePing, 0, 0, make([]byte, 7)), false, http2.ErrCodeFrameSize},
		{"PING on a stream", raw(http2.FramePing, 0, 1, make([]byte, 8)), false, http2.ErrCodeProtocol},
		{"SETTINGS on a stream", raw(http2.FrameSettings, 0, 1, nil), false, http2.ErrCodeProtocol},
		{"SETTINGS of 5 bytes", raw(http2.FrameSettings, 0, 0, make([]byte, 5)), false, http2.ErrCodeFrameSize},
		{"window size above 2^31-1", raw(http2.FrameSettings, 0, 0, append([]byte{0, 4}, u32(1<<31)...)), false, http2.ErrCodeFlowControl},
		{"frame size below 16 KiB", raw(http2.FrameSettings, 0, 0, append([]byte{0, 5}, u32(1)...)), false, http2.ErrCodeProtocol},
		{"PUSH_PROMISE", raw(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, u32(2)), false, http2.ErrCodeProtocol},
		{"CONTINUATION without HEADERS", raw(http2.FrameContinuation, 0, 3, nil), false, http2.ErrCodeProtocol},
		{"frame within a header block", func(p *rawPeer) {
			p.fr.WriteRawFrame(http2.FrameHeaders, 0, 3, nil)
			p.fr.WriteData(1, false, []byte("x"))
		}, false, http2.ErrCodeProtocol},
		{"frame above the limit", raw(http2.FrameData, 0, 1, make([]byte, 1<<20+1)), false, http2.ErrCodeFrameSize},
		{"endless CONTINUATION", func(p *rawPeer) {
			p.fr.WriteRawFrame(http2.FrameHeaders, 0, 3, nil)
			for range 100 {
				p.fr.WriteRawFrame(http2.FrameContinuation, 0, 3, nil)
			}
		}, false, http2.ErrCodeEnhanceYourCalm},
		{"header block of 200 KiB", raw(http2.FrameHeaders, 0, 3, make([]byte, 200<<10)), false, http2.ErrCodeEnhanceYourCalm},
		{"broken HPACK", raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 3, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}), false, http2.ErrCodeCompression},
		{"HEADERS on an even stream", func(p *rawPeer) { p.connect(2, "x:1") }, false, http2.ErrCodeProtocol},
		{"HEADERS on an older stream", func(p *rawPeer) {
			p.connect(5, "x:1")
			p.connect(3, "x:1")
		}, false, http2.ErrCodeProtocol},
		{"HEADERS on a connected stream", func(p *rawPeer) { p.headers(1, true, "trailer", "x") }, true, http2.ErrCodeProtocol},
		{"DATA after END_STREAM", func(p *rawPeer) {
			p.fr.WriteData(1, true, nil)
			p.fr.WriteData(1, false, []byte("x"))
		}, true, http2.ErrCodeStreamClosed},
		{"DATA beyond the stream's window", func(p *rawPeer) {
			for range 3 {
				p.fr.WriteData(1, false, make([]byte, 10<<10))
			}
		}, true, http2.ErrCodeFlowControl},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := serverConfig()
			stop := make(chan struct{})
			defer close(stop)
			cfg.Handler = func(ctx context.Context, in *Inbound) { // takes no byte, so that windows only shrink
				select {
				case <-ctx.Done():
				case <-stop:
				}
			}
			_, hop := startServer(t, cfg)
			peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
			peer.connect(1, "x:1")
			tt.send(peer)
			f, err := peer.next(http2.FrameGoAway, http2.FrameRSTStream)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			switch f := f.(type) {
			case *http2.GoAwayFrame:
				if tt.stream || f.ErrCode != tt.code {
					t.Errorf("GOAWAY %v", f.ErrCode)
				}
			case *http2.RSTStreamFrame:
				if !tt.stream || f.StreamID != 1 || f.ErrCode != tt.code {
					t.Errorf("RST_STREAM %d %v", f.StreamID, f.ErrCode)
				}
			}
		})
	}
}

// TestMalformedRequests are answered on their stream, and leave the connection alone.
func TestMalformedRequests(t *testing.T) {
	tests := map[string][]string{
		"scheme":         {":method", "CONNECT", ":authority", "x:1", ":scheme", "https"},
		"path":           {":method", "CONNECT", ":authority", "x:1", ":path", "/"},
		"no authority":   {":method", "CONNECT"},
		"upper case":     {":method", "CONNECT", ":authority", "x:1", "Baggage", "x"},
		"status":         {":method", "CONNECT", ":authority", "x:1", ":status", "200"},
		"pseudo last":    {":method", "CONNECT", "a", "b", ":authority", "x:1"},
		"connection":     {":method", "CONNECT", ":authority", "x:1", "connection", "close"},
		"line feed":      {":method", "CONNECT", ":authority", "x:1", "a", "b\nc"},
		"GET, no path":   {":method", "GET", ":authority", "x:1", ":scheme", "https"},
		"extended":       {":method", "CONNECT", ":authority", "x:1", ":protocol", "websocket"},
		"two authority":  {":method", "CONNECT", ":authority", "x:1", ":authority", "y:1"},
		"te other":       {":method", "CONNECT", ":authority", "x:1", "te", "gzip"},
		"transfer codes": {":method", "CONNECT", ":authority", "x:1", "transfer-encoding", "chunked"},
	}
	_, hop := startServer(t, serverConfig())
	app := serveApps(t, echo)
	for name, fields := range tests {
		t.Run(name, func(t *testing.T) {
			peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
			peer.headers(1, false, fields...)
			f, err := peer.next(http2.FrameRSTStream, http2.FrameGoAway)
			r, ok := f.(*http2.RSTStreamFrame)
			if err != nil || !ok || r.StreamID != 1 || r.ErrCode != http2.ErrCodeProtocol {
				t.Fatalf("got %v, %v", f, err)
			}
			peer.connect(3, app.String())
			if id := peer.expect(http2.FrameHeaders).StreamID; id != 3 {
				t.Errorf("next request answered on %d", id)
			}
		})
	}
}

// TestHeaderListIsBounded: a header list above the limit is refused whole, by either end, and the connection lives on.
func TestHeaderListIsBounded(t *testing.T) {
	long := make([]Header, 20)
	for i := range long {
		long[i] = Header{fmt.Sprintf("x-%d", i), string(bytes.Repeat([]byte("x"), 1<<10))}
	}
	cfg := serverConfig()
	cfg.MaxHeaderList = 16 << 10
	cfg.Handler = func(ctx context.Context, in *Inbound) { in.Refuse(503, long...) }
	_, hop := startServer(t, cfg)
	p := startPool(t, clientConfig())
	for _, r := range []*Request{{Authority: "x:1"}, {Authority: "x:1", Header: long}} {
		_, err := p.Open(testContext(t), Key{Addr: hop}, r)
		var re *ResetError
		if !errors.As(err, &re) || re.Code != http2.ErrCodeEnhanceYourCalm || re.Remote != (r.Header != nil) {
			t.Errorf("Open: %v", err)
		}
	}
	if n := len(p.Conns()); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestPrefaceIsChecked: whatever does not start like HTTP/2 is closed.
func TestPrefaceIsChecked(t *testing.T) {
	srv, hop := startServer(t, serverConfig())
	for name, first := range map[string]string{
		"HTTP/1":             "GET / HTTP/1.1\r\nHost: x\r\n\r\n          ",
		"no SETTINGS":        http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
		"SETTINGS ack first": http2.ClientPreface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", hop.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			peer := newRawPeer(c.(*net.TCPConn), nil)
			io.WriteString(peer.Conn, first)
			f, err := peer.next(http2.FrameGoAway)
			if err != nil || f.(*http2.GoAwayFrame).ErrCode != http2.ErrCodeProtocol {
				t.Errorf("got %v, %v", f, err)
			}
		})
	}
	eventually(t, "no connection is left", func() bool { return len(srv.Conns()) == 0 })
}

func TestServerLimitsStreams(t *testing.T) {
	cfg := serverConfig()
	cfg.MaxStreams = 2
	_, hop := startServer(t, cfg)
	app := serveApps(t, echo)
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	for _, id := range []uint32{1, 3, 5} {
		peer.connect(id, app.String())
	}
	f, err := peer.next(http2.FrameRSTStream)
	if err != nil || f.Header().StreamID != 5 || f.(*http2.RSTStreamFrame).ErrCode != http2.ErrCodeRefusedStream {
		t.Errorf("got %v, %v", f, err)
	}
}

// TestPeerThatReadsNothing: control frames in waiting are bounded; a peer that provokes them and does not read is cut.
func TestPeerThatReadsNothing(t *testing.T) {
	srv, hop := startServer(t, serverConfig())
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	for {
		if err := peer.fr.WritePing(false, [8]byte{1}); err != nil {
			break // cut
		}
	}
	eventually(t, "the connection is gone", func() bool { return len(srv.Conns()) == 0 })
}

func TestHandshakeErrorIsReported(t *testing.T) {
	cfg := serverConfig()
	type report struct {
		remote, local netip.AddrPort
		err           error
	}
	reports := make(chan report, 1)
	cfg.OnHandshakeError = func(remote, local netip.AddrPort, err error) { reports <- report{remote, local, err} }
	_, hop := startServer(t, cfg)
	c, err := net.Dial("tcp", hop.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	r := <-reports
	if r.remote != addrPort(c.LocalAddr()) || r.local != hop || r.err == nil {
		t.Errorf("report %+v", r)
	}
}
