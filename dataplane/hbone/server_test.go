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
	"strings"
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

// serverRules are what a client may not send, and what of it breaks one stream only.
var serverRules = []rule{
	{"DATA on stream 0", false, raw(http2.FrameData, 0, 0, "x"), onConn(protocolError)},
	{"DATA on an idle stream", false, raw(http2.FrameData, 0, 5, "x"), onConn(protocolError)},
	{"DATA with too much padding", false, raw(http2.FrameData, http2.FlagDataPadded, 1, "\x09\x00"), onConn(protocolError)},
	{"padded DATA without a length", false, raw(http2.FrameData, http2.FlagDataPadded, 1, ""), onConn(frameSize)},
	{"RST_STREAM on an idle stream", false, raw(http2.FrameRSTStream, 0, 7, u32(8)), onConn(protocolError)},
	{"WINDOW_UPDATE on an idle stream", false, raw(http2.FrameWindowUpdate, 0, 9, u32(1)), onConn(protocolError)},
	{"WINDOW_UPDATE of 0 on the connection", false, raw(http2.FrameWindowUpdate, 0, 0, u32(0)), onConn(protocolError)},
	{"WINDOW_UPDATE of 0 on a stream", false, raw(http2.FrameWindowUpdate, 0, 1, u32(0)), onStream(1, protocolError)},
	{"connection window overflow", false, raw(http2.FrameWindowUpdate, 0, 0, u32(1<<31-1)), onConn(flowControl)},
	{"stream window overflow", false, raw(http2.FrameWindowUpdate, 0, 1, u32(1<<31-1)), onStream(1, flowControl)},
	{"WINDOW_UPDATE of 3 bytes", false, raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x01"), onConn(frameSize)},
	{"PING of 7 bytes", false, raw(http2.FramePing, 0, 0, "1234567"), onConn(frameSize)},
	{"PING on a stream", false, raw(http2.FramePing, 0, 1, "12345678"), onConn(protocolError)},
	{"SETTINGS on a stream", false, raw(http2.FrameSettings, 0, 1, ""), onConn(protocolError)},
	{"SETTINGS of 5 bytes", false, raw(http2.FrameSettings, 0, 0, "12345"), onConn(frameSize)},
	{"window size above 2^31-1", false, raw(http2.FrameSettings, 0, 0, "\x00\x04"+u32(1<<31)), onConn(flowControl)},
	{"frame size below 16 KiB", false, raw(http2.FrameSettings, 0, 0, "\x00\x05"+u32(1)), onConn(protocolError)},
	{"PUSH_PROMISE", false, raw(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, u32(2)), onConn(protocolError)},
	{"CONTINUATION without HEADERS", false, raw(http2.FrameContinuation, 0, 3, ""), onConn(protocolError)},
	{"frame within a header block", false, func(p *rawPeer) {
		p.fr.WriteRawFrame(http2.FrameHeaders, 0, 3, nil)
		p.fr.WriteData(1, false, []byte("x"))
	}, onConn(protocolError)},
	{"frame above the limit", false, raw(http2.FrameData, 0, 1, strings.Repeat("x", 1<<20+1)), onConn(frameSize)},
	{"endless CONTINUATION", false, func(p *rawPeer) { endlessBlock(p, 3) }, onConn(http2.ErrCodeEnhanceYourCalm)},
	{"header block of 200 KiB", false, raw(http2.FrameHeaders, 0, 3, strings.Repeat("\x00", 200<<10)), onConn(http2.ErrCodeEnhanceYourCalm)},
	{"broken HPACK", false, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 3, "\xff\xff\xff\xff\xff\xff"), onConn(compression)},
	{"HEADERS on an even stream", false, func(p *rawPeer) { p.connect(2, "x:1") }, onConn(protocolError)},
	{"HEADERS on an older stream", false, func(p *rawPeer) {
		p.connect(5, "x:1")
		p.connect(3, "x:1")
	}, onConn(protocolError)},
	{"HEADERS on a connected stream", false, func(p *rawPeer) { p.headers(1, true, "trailer", "x") }, onStream(1, protocolError)},
	{"DATA after END_STREAM", false, func(p *rawPeer) {
		p.fr.WriteData(1, true, nil)
		p.fr.WriteData(1, false, []byte("x"))
	}, onStream(1, streamClosed)},
	{"DATA beyond the stream's window", false, func(p *rawPeer) {
		for range 3 {
			p.fr.WriteData(1, false, make([]byte, 10<<10))
		}
	}, onStream(1, flowControl)},
}

func u32(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }

// TestServerJudgesFrames sends what RFC 9113 forbids and expects the named error, on the stream or the connection.
func TestServerJudgesFrames(t *testing.T) { judge(t, serverRules) }

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

func TestServerLimitsStreams(t *testing.T) {
	for _, limit := range []uint32{1, 2} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			cfg := serverConfig()
			cfg.MaxStreams = limit
			_, hop := startServer(t, cfg)
			app := serveApps(t, echo)
			peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
			over := 1 + 2*limit
			for id := uint32(1); id <= over; id += 2 {
				peer.connect(id, app.String())
			}
			f, err := peer.next(http2.FrameRSTStream)
			if err != nil || f.Header().StreamID != over || f.(*http2.RSTStreamFrame).ErrCode != http2.ErrCodeRefusedStream {
				t.Errorf("got %v, %v", f, err)
			}
		})
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
