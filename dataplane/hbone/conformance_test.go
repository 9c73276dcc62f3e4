// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// These are the cases of RFC 9113 that apply to a server that answers CONNECT, one test per section. A case sends
// something after SETTINGS were exchanged, stream 1 being open unless it says otherwise, and expects how that is judged.

// verdict is how a peer's frames are answered.
type verdict struct {
	stream uint32 // 0: the connection ends
	code   Code
	fine   bool // neither; a PING afterwards is answered
}

func onConn(code Code) verdict              { return verdict{code: code} }
func onStream(id uint32, code Code) verdict { return verdict{stream: id, code: code} }

var fine = verdict{fine: true}

const (
	protocolError = http2.ErrCodeProtocol
	frameSize     = http2.ErrCodeFrameSize
	flowControl   = http2.ErrCodeFlowControl
	streamClosed  = http2.ErrCodeStreamClosed
	compression   = http2.ErrCodeCompression
)

// rule is one case.
type rule struct {
	name string
	idle bool // open no stream before
	send func(p *rawPeer)
	want verdict
}

// raw sends one frame as it is.
func raw(kind http2.FrameType, flags http2.Flags, id uint32, payload string) func(p *rawPeer) {
	return func(p *rawPeer) { p.fr.WriteRawFrame(kind, flags, id, []byte(payload)) }
}

// request sends HEADERS with these fields on stream 3.
func request(kv ...string) func(p *rawPeer) {
	return func(p *rawPeer) { p.headers(3, false, kv...) }
}

func judge(t *testing.T, rules []rule) {
	t.Helper()
	cfg := serverConfig()
	cfg.Handler = func(ctx context.Context, in *Inbound) { <-ctx.Done() }
	_, hop := startServer(t, cfg)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
			defer peer.Conn.NetConn().Close()
			if !r.idle {
				peer.connect(1, "x:1")
			}
			r.send(peer)
			mark := [8]byte{0xff, 1}
			peer.fr.WritePing(false, mark)
			if got := answer(peer, mark); got != r.want {
				t.Errorf("judged %+v, want %+v", got, r.want)
			}
		})
	}
}

// answer reads until the peer under test says what it makes of what it got.
func answer(p *rawPeer, mark [8]byte) verdict {
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return verdict{code: 0xdead}
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			return onConn(f.ErrCode)
		case *http2.RSTStreamFrame:
			return onStream(f.StreamID, f.ErrCode)
		case *http2.PingFrame:
			if f.IsAck() && f.Data == mark {
				return fine
			}
		}
	}
}

func TestRFC9113_3_4_Preface(t *testing.T) {
	srv, hop := startServer(t, serverConfig())
	for name, first := range map[string]string{
		"HTTP/1":             "GET / HTTP/1.1\r\nHost: x\r\n\r\n          ",
		"invalid":            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
		"PING before":        http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
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
			f, err := peer.fr.ReadFrame() // the server's own preface comes first
			if s, ok := f.(*http2.SettingsFrame); err != nil || !ok || s.IsAck() {
				t.Fatalf("first frame %v, %v", f, err)
			}
			if got := answer(peer, [8]byte{}); got != onConn(protocolError) {
				t.Errorf("judged %+v", got)
			}
		})
	}
	eventually(t, "no connection is left", func() bool { return len(srv.Conns()) == 0 })
}

func TestRFC9113_4_1_FrameFormat(t *testing.T) {
	judge(t, []rule{
		{"unknown type", false, raw(0x16, 0, 0, "whatever"), fine},
		{"undefined flags", false, raw(http2.FramePing, 0x16, 0, "12345678"), fine},
		{"reserved bit", false, func(p *rawPeer) { p.fr.WriteRawFrame(http2.FramePing, 0, 1<<31, []byte("12345678")) }, fine},
	})
}

func TestRFC9113_4_2_FrameSize(t *testing.T) {
	over := strings.Repeat("x", 1<<20+1)
	judge(t, []rule{
		{"DATA of the largest size", false, func(p *rawPeer) { p.fr.WriteData(1, false, make([]byte, 16<<10)) }, fine},
		{"DATA above it", false, raw(http2.FrameData, 0, 1, over), onConn(frameSize)},
		{"HEADERS above it", false, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 3, over), onConn(frameSize)},
		{"unknown above it", false, raw(0x16, 0, 0, over), onConn(frameSize)},
	})
}

func TestRFC9113_4_3_FieldSections(t *testing.T) {
	begun := func(next func(p *rawPeer)) func(p *rawPeer) {
		return func(p *rawPeer) {
			p.fr.WriteRawFrame(http2.FrameHeaders, 0, 3, []byte{0x82})
			next(p)
		}
	}
	judge(t, []rule{
		{"broken compression", false, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 3, "\xff\xff\xff\xff\xff\xff"), onConn(compression)},
		{"PRIORITY within a block", false, begun(raw(http2.FramePriority, 0, 1, "\x00\x00\x00\x00\x00")), onConn(protocolError)},
		{"unknown within a block", false, begun(raw(0x16, 0, 0, "")), onConn(protocolError)},
		{"HEADERS of another stream within a block", false, begun(raw(http2.FrameHeaders, 4, 5, "\x82")), onConn(protocolError)},
	})
}

func TestRFC9113_5_1_StreamStates(t *testing.T) {
	ended := func(next func(p *rawPeer)) func(p *rawPeer) {
		return func(p *rawPeer) {
			p.fr.WriteData(1, true, nil)
			next(p)
		}
	}
	gone := func(next func(p *rawPeer)) func(p *rawPeer) {
		return func(p *rawPeer) {
			p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
			next(p)
		}
	}
	data := raw(http2.FrameData, 0, 1, "x")
	judge(t, []rule{
		{"idle: DATA", true, data, onConn(protocolError)},
		{"idle: RST_STREAM", true, raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08"), onConn(protocolError)},
		{"idle: WINDOW_UPDATE", true, raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01"), onConn(protocolError)},
		{"idle: PRIORITY", true, raw(http2.FramePriority, 0, 1, "\x00\x00\x00\x00\x00"), fine},
		{"half closed: DATA", false, ended(data), onStream(1, streamClosed)},
		{"half closed: WINDOW_UPDATE", false, ended(raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01")), fine},
		{"half closed: RST_STREAM", false, ended(raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08")), fine},
		{"reset: DATA, late", false, gone(data), fine},
		{"reset: WINDOW_UPDATE, late", false, gone(raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01")), fine},
	})
}

func TestRFC9113_5_1_1_StreamIdentifiers(t *testing.T) {
	judge(t, []rule{
		{"even", false, func(p *rawPeer) { p.connect(2, "x:1") }, onConn(protocolError)},
		{"smaller than before", true, func(p *rawPeer) { p.connect(5, "x:1"); p.connect(3, "x:1") }, onConn(protocolError)},
		{"zero", false, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 0, "\x82"), onConn(protocolError)},
		{"skipped ones are closed", false, func(p *rawPeer) { p.connect(9, "x:1"); p.fr.WriteWindowUpdate(5, 1) }, fine},
	})
}

func TestRFC9113_5_1_2_Concurrency(t *testing.T) {
	judge(t, []rule{{"one too many", false, func(p *rawPeer) {
		for id := uint32(3); id <= 401; id += 2 {
			p.connect(id, "x:1")
		}
	}, onStream(401, http2.ErrCodeRefusedStream)}})
}

func TestRFC9113_5_4_ErrorHandling(t *testing.T) {
	judge(t, []rule{
		{"a stream's error leaves the others", false, func(p *rawPeer) {
			p.connect(3, "x:1")
			p.fr.WriteWindowUpdate(3, 0)
		}, onStream(3, protocolError)},
		{"an unknown code", false, raw(http2.FrameRSTStream, 0, 1, "\x00\x00\xff\xff"), fine},
	})
}

func TestRFC9113_5_5_Extensions(t *testing.T) {
	judge(t, []rule{
		{"unknown frame", false, raw(0x7f, 0xff, 7, "extension"), fine},
		{"unknown setting", false, raw(http2.FrameSettings, 0, 0, "\x7f\x7f\x00\x00\x00\x01"), fine},
	})
}

func TestRFC9113_6_1_Data(t *testing.T) {
	judge(t, []rule{
		{"stream 0", false, raw(http2.FrameData, 0, 0, "x"), onConn(protocolError)},
		{"padding as long as the frame", false, raw(http2.FrameData, http2.FlagDataPadded, 1, "\x06hello"), onConn(protocolError)},
		{"no room for the pad length", false, raw(http2.FrameData, http2.FlagDataPadded, 1, ""), onConn(frameSize)},
		{"padded", false, raw(http2.FrameData, http2.FlagDataPadded, 1, "\x02hello\x00\x00"), fine},
	})
}

func TestRFC9113_6_2_Headers(t *testing.T) {
	judge(t, []rule{
		{"stream 0", false, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 0, "\x82"), onConn(protocolError)},
		{"padding as long as the frame", false, raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersPadded, 3, "\x09\x82"), onConn(protocolError)},
		{"without END_HEADERS, then another frame", false, func(p *rawPeer) {
			p.fr.WriteRawFrame(http2.FrameHeaders, 0, 3, []byte{0x82})
			p.fr.WriteData(1, false, []byte("x"))
		}, onConn(protocolError)},
	})
}

func TestRFC9113_6_3_Priority(t *testing.T) {
	judge(t, []rule{{"on an open stream", false, raw(http2.FramePriority, 0, 1, "\x00\x00\x00\x03\x10"), fine}})
}

func TestRFC9113_6_4_ResetStream(t *testing.T) {
	judge(t, []rule{
		{"stream 0", false, raw(http2.FrameRSTStream, 0, 0, "\x00\x00\x00\x08"), onConn(protocolError)},
		{"idle stream", false, raw(http2.FrameRSTStream, 0, 9, "\x00\x00\x00\x08"), onConn(protocolError)},
		{"three bytes", false, raw(http2.FrameRSTStream, 0, 1, "\x00\x00\x00"), onConn(frameSize)},
	})
}

func TestRFC9113_6_5_Settings(t *testing.T) {
	setting := func(id uint16, v uint32) func(p *rawPeer) {
		return func(p *rawPeer) { p.fr.WriteSettings(http2.Setting{ID: http2.SettingID(id), Val: v}) }
	}
	judge(t, []rule{
		{"ack with a payload", false, raw(http2.FrameSettings, http2.FlagSettingsAck, 0, "\x00\x01\x00\x00\x00\x01"), onConn(frameSize)},
		{"on a stream", false, raw(http2.FrameSettings, 0, 1, ""), onConn(protocolError)},
		{"five bytes", false, raw(http2.FrameSettings, 0, 0, "\x00\x01\x00\x00\x00"), onConn(frameSize)},
		{"ENABLE_PUSH 2", false, setting(2, 2), onConn(protocolError)},
		{"INITIAL_WINDOW_SIZE above the most", false, setting(4, 1<<31), onConn(flowControl)},
		{"MAX_FRAME_SIZE below the least", false, setting(5, 1<<14-1), onConn(protocolError)},
		{"MAX_FRAME_SIZE above the most", false, setting(5, 1<<24), onConn(protocolError)},
		{"MAX_CONCURRENT_STREAMS 0", false, setting(3, 0), fine},
		{"the same one twice", false, func(p *rawPeer) {
			p.fr.WriteSettings(http2.Setting{ID: 4, Val: 1}, http2.Setting{ID: 4, Val: 100})
		}, fine},
	})
}

// TestRFC9113_6_5_3_Synchronization: SETTINGS are acknowledged.
func TestRFC9113_6_5_3_Synchronization(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	for acks := 0; acks < 1; {
		f, err := peer.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := f.(*http2.SettingsFrame); ok && s.IsAck() {
			acks++
		}
	}
}

func TestRFC9113_6_6_PushPromise(t *testing.T) {
	judge(t, []rule{{"from a client", false, raw(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, "\x00\x00\x00\x02\x82"), onConn(protocolError)}})
}

func TestRFC9113_6_7_Ping(t *testing.T) {
	judge(t, []rule{
		{"answered", false, func(*rawPeer) {}, fine},
		{"an answer to nothing", false, raw(http2.FramePing, http2.FlagPingAck, 0, "12345678"), fine},
		{"on a stream", false, raw(http2.FramePing, 0, 1, "12345678"), onConn(protocolError)},
		{"six bytes", false, raw(http2.FramePing, 0, 0, "123456"), onConn(frameSize)},
	})
}

func TestRFC9113_6_8_GoAway(t *testing.T) {
	judge(t, []rule{
		{"on a stream", false, raw(http2.FrameGoAway, 0, 1, "\x00\x00\x00\x00\x00\x00\x00\x00"), onConn(protocolError)},
		{"with debug data", false, raw(http2.FrameGoAway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00so long"), fine},
	})
}

func TestRFC9113_6_9_WindowUpdate(t *testing.T) {
	judge(t, []rule{
		{"connection by 0", false, func(p *rawPeer) { p.fr.WriteWindowUpdate(0, 0) }, onConn(protocolError)},
		{"stream by 0", false, func(p *rawPeer) { p.fr.WriteWindowUpdate(1, 0) }, onStream(1, protocolError)},
		{"three bytes", false, raw(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x01"), onConn(frameSize)},
	})
}

func TestRFC9113_6_9_1_FlowControlWindow(t *testing.T) {
	judge(t, []rule{
		{"connection above the most", false, func(p *rawPeer) { p.fr.WriteWindowUpdate(0, 1<<31-1) }, onConn(flowControl)},
		{"stream above the most", false, func(p *rawPeer) { p.fr.WriteWindowUpdate(1, 1<<31-1) }, onStream(1, flowControl)},
		{"DATA beyond the stream's", false, func(p *rawPeer) { p.fr.WriteData(1, false, make([]byte, 16<<10+1)) }, onStream(1, flowControl)},
		{"DATA beyond the connection's", false, func(p *rawPeer) { p.fr.WriteData(1, false, make([]byte, 64<<10)) }, onConn(flowControl)},
		{"empty DATA needs none", false, func(p *rawPeer) {
			p.fr.WriteData(1, false, make([]byte, 16<<10))
			p.fr.WriteData(1, false, nil)
		}, fine},
	})
}

// TestRFC9113_6_9_2_InitialWindow: a change applies to streams that are open, whose window may become negative.
func TestRFC9113_6_9_2_InitialWindow(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	app := serveApps(t, echo)
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3})
	peer.connect(1, app.String())
	peer.expect(http2.FrameHeaders)
	peer.fr.WriteData(1, false, []byte("hello, world"))
	read := func(want string) {
		t.Helper()
		got := ""
		for len(got) < len(want) {
			f, err := peer.next(http2.FrameData)
			if err != nil {
				t.Fatalf("after %q: %v", got, err)
			}
			got += string(f.(*http2.DataFrame).Data())
		}
		if got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	read("hel")
	peer.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) // -3
	peer.fr.WriteWindowUpdate(1, 4)                                                  // 1
	read("l")
	peer.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 8})
	read("o, world")
	judge(t, []rule{{"SETTINGS push a window above the most", false, func(p *rawPeer) {
		p.fr.WriteWindowUpdate(1, 1<<31-1-65535)
		p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	}, onConn(flowControl)}})
}

func TestRFC9113_6_10_Continuation(t *testing.T) {
	headers := func(flags http2.Flags) func(p *rawPeer) { return raw(http2.FrameHeaders, flags, 3, "\x82") }
	then := func(a, b func(p *rawPeer)) func(p *rawPeer) { return func(p *rawPeer) { a(p); b(p) } }
	judge(t, []rule{
		{"stream 0", false, then(headers(0), raw(http2.FrameContinuation, 4, 0, "\x82")), onConn(protocolError)},
		{"another stream", false, then(headers(0), raw(http2.FrameContinuation, 4, 5, "\x82")), onConn(protocolError)},
		{"after END_HEADERS", false, then(func(p *rawPeer) { p.connect(3, "x:1") }, raw(http2.FrameContinuation, 4, 3, "\x82")), onConn(protocolError)},
		{"after DATA", false, then(raw(http2.FrameData, 0, 1, "x"), raw(http2.FrameContinuation, 4, 1, "\x82")), onConn(protocolError)},
	})
}

// TestRFC9113_7_ErrorCodes: a code that nobody knows is no reason for an error (also 5.4).
func TestRFC9113_7_ErrorCodes(t *testing.T) {
	judge(t, []rule{
		{"RST_STREAM", false, raw(http2.FrameRSTStream, 0, 1, "\xff\xff\xff\xff"), fine},
		{"GOAWAY", false, raw(http2.FrameGoAway, 0, 0, "\x00\x00\x00\x00\xff\xff\xff\xff"), fine},
	})
}

func TestRFC9113_8_2_Fields(t *testing.T) {
	bad := onStream(3, protocolError)
	with := func(name, value string) func(p *rawPeer) {
		return request(":method", "CONNECT", ":authority", "x:1", name, value)
	}
	rules := []rule{{"te: trailers", false, with("te", "trailers"), fine}}
	for _, f := range [][2]string{
		{"Upper", "x"}, {"a b", "x"}, {"", "x"}, {"a", "b\nc"}, {"a", "b\x00c"},
		{"connection", "close"}, {"keep-alive", "1"}, {"proxy-connection", "x"}, {"transfer-encoding", "chunked"}, {"upgrade", "x"}, {"te", "gzip"},
	} {
		rules = append(rules, rule{fmt.Sprintf("%q: %q", f[0], f[1]), false, with(f[0], f[1]), bad})
	}
	judge(t, rules)
}

func TestRFC9113_8_3_PseudoHeaderFields(t *testing.T) {
	bad := onStream(3, protocolError)
	judge(t, []rule{
		{"unknown", false, request(":method", "CONNECT", ":authority", "x:1", ":test", "x"), bad},
		{"of a response", false, request(":method", "CONNECT", ":authority", "x:1", ":status", "200"), bad},
		{"after a field", false, request(":method", "CONNECT", "a", "b", ":authority", "x:1"), bad},
		{"twice", false, request(":method", "CONNECT", ":authority", "x:1", ":authority", "y:1"), bad},
		{"no method", false, request(":authority", "x:1"), bad},
		{"GET without path", false, request(":method", "GET", ":scheme", "https", ":authority", "x"), bad},
		{"GET without scheme", false, request(":method", "GET", ":path", "/", ":authority", "x"), bad},
		{"GET with an empty path", false, request(":method", "GET", ":scheme", "https", ":path", "", ":authority", "x"), bad},
		{"GET", false, request(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "x"), fine},
	})
}

func TestRFC9113_8_5_Connect(t *testing.T) {
	bad := onStream(3, protocolError)
	judge(t, []rule{
		{"plain", false, request(":method", "CONNECT", ":authority", "x:1"), fine},
		{"with a scheme", false, request(":method", "CONNECT", ":authority", "x:1", ":scheme", "https"), bad},
		{"with a path", false, request(":method", "CONNECT", ":authority", "x:1", ":path", "/"), bad},
		{"without authority", false, request(":method", "CONNECT"), bad},
		{"HEADERS on the stream", false, func(p *rawPeer) { p.headers(1, true, "trailer", "x") }, onStream(1, protocolError)},
	})
	t.Run("an upstream that resets is CONNECT_ERROR", func(t *testing.T) {
		_, hop := startServer(t, serverConfig())
		app := serveApps(t, func(c *net.TCPConn) {
			c.Read(make([]byte, 1))
			c.SetLinger(0)
			c.Close()
		})
		peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
		peer.connect(1, app.String())
		peer.expect(http2.FrameHeaders)
		peer.fr.WriteData(1, false, []byte("x"))
		f, err := peer.next(http2.FrameRSTStream)
		if r, ok := f.(*http2.RSTStreamFrame); !ok || r.ErrCode != http2.ErrCodeConnect {
			t.Errorf("got %v, %v", f, err)
		}
	})
	t.Run("a refused target is answered", func(t *testing.T) {
		_, hop := startServer(t, serverConfig())
		p := startPool(t, clientConfig())
		_, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: "127.0.0.1:1"})
		if refused := (*StatusError)(nil); !errors.As(err, &refused) || refused.Code != 503 {
			t.Errorf("Open: %v", err)
		}
	})
}
