// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// misuse is something that a peer may do a little and not for ever; stream is one that is open.
type misuse struct {
	once func(p *rawPeer, stream uint32)
	code Code // 0: ENHANCE_YOUR_CALM
}

// floodsOfAnyone are what a hostile client and a hostile server can do alike.
var floodsOfAnyone = map[string]misuse{
	"PING":              {once: func(p *rawPeer, _ uint32) { p.fr.WritePing(false, [8]byte{1}) }},
	"PING answers":      {once: func(p *rawPeer, _ uint32) { p.fr.WritePing(true, [8]byte{1}) }},
	"SETTINGS":          {once: func(p *rawPeer, _ uint32) { p.fr.WriteSettings() }},
	"SETTINGS answers":  {once: func(p *rawPeer, _ uint32) { p.fr.WriteSettingsAck() }},
	"PRIORITY":          {once: func(p *rawPeer, _ uint32) { p.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }},
	"unknown frames":    {once: func(p *rawPeer, _ uint32) { p.fr.WriteRawFrame(0x7f, 0, 0, nil) }},
	"WINDOW_UPDATE":     {once: func(p *rawPeer, id uint32) { p.fr.WriteWindowUpdate(id, 1) }},
	"connection's":      {once: func(p *rawPeer, _ uint32) { p.fr.WriteWindowUpdate(0, 1) }},
	"empty DATA":        {once: func(p *rawPeer, id uint32) { p.fr.WriteData(id, false, nil) }},
	"padding":           {once: func(p *rawPeer, id uint32) { p.fr.WriteDataPadded(id, false, []byte{1}, make([]byte, 9)) }},
	"GOAWAY":            {once: func(p *rawPeer, id uint32) { p.fr.WriteGoAway(id, http2.ErrCodeNo, nil) }},
	"many settings":     {once: func(p *rawPeer, _ uint32) { p.fr.WriteSettings(make([]http2.Setting, 100)...) }},
	"endless block":     {once: endlessBlock},
	"window of nothing": {once: func(p *rawPeer, _ uint32) { p.fr.WriteWindowUpdate(0, 0) }, code: http2.ErrCodeProtocol},
	"window overflow":   {once: func(p *rawPeer, _ uint32) { p.fr.WriteWindowUpdate(0, 1<<31-1) }, code: http2.ErrCodeFlowControl},
	"oversize frame":    {once: func(p *rawPeer, id uint32) { p.fr.WriteRawFrame(http2.FrameData, 0, id, make([]byte, 1<<20+1)) }, code: http2.ErrCodeFrameSize},
}

func endlessBlock(p *rawPeer, id uint32) {
	p.fr.WriteRawFrame(http2.FrameHeaders, 0, id, nil)
	for range 100 {
		p.fr.WriteContinuation(id, false, nil)
	}
}

// runFlood repeats f until the connection under test gives up, and checks its last word.
func runFlood(t *testing.T, peer *rawPeer, f misuse, stream uint32) {
	t.Helper()
	want := f.code
	if want == 0 {
		want = http2.ErrCodeEnhanceYourCalm
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20_000 {
			select {
			case <-stop:
				return
			default:
				f.once(peer, stream)
			}
		}
	}()
	var got Code
	for {
		fr, err := peer.fr.ReadFrame()
		if err != nil {
			t.Errorf("no GOAWAY: %v", err)
			break
		}
		if g, ok := fr.(*http2.GoAwayFrame); ok && g.ErrCode != http2.ErrCodeNo {
			got = g.ErrCode
			break
		}
	}
	close(stop)
	peer.Conn.NetConn().Close()
	<-done
	if got != want {
		t.Errorf("GOAWAY %v, want %v", got, want)
	}
}

// TestFloodsOfClients: whatever a client does without end costs it the connection (RFC 9113 §10.5).
func TestFloodsOfClients(t *testing.T) {
	open := func(p *rawPeer) uint32 {
		id := p.opened*2 + 1
		p.opened++
		p.connect(id, "x:1")
		return id
	}
	floods := map[string]misuse{
		"rapid reset":              {once: func(p *rawPeer, _ uint32) { p.fr.WriteRSTStream(open(p), http2.ErrCodeCancel) }},
		"made you reset, window":   {once: func(p *rawPeer, _ uint32) { p.fr.WriteWindowUpdate(open(p), 0) }},
		"made you reset, overflow": {once: func(p *rawPeer, _ uint32) { p.fr.WriteWindowUpdate(open(p), 1<<31-1) }},
		"made you reset, headers":  {once: func(p *rawPeer, _ uint32) { p.connect(open(p), "x:1") }},
		"made you reset, closed": {once: func(p *rawPeer, _ uint32) {
			id := open(p)
			p.fr.WriteData(id, true, nil)
			p.fr.WriteData(id, false, []byte("x"))
		}},
		"malformed requests":  {once: func(p *rawPeer, _ uint32) { p.headers(p.opened*2+1, false, ":method", "CONNECT"); p.opened++ }},
		"streams without end": {once: func(p *rawPeer, _ uint32) { open(p) }},
		"resets of the dead":  {once: func(p *rawPeer, id uint32) { p.fr.WriteRSTStream(id, http2.ErrCodeCancel) }},
		"large headers":       {once: func(p *rawPeer, _ uint32) { p.headers(p.opened*2+1, false, manyFields()...); p.opened++ }},
	}
	for name, f := range floodsOfAnyone {
		floods[name] = f
	}
	for name, f := range floods {
		t.Run(name, func(t *testing.T) {
			cfg := serverConfig()
			cfg.Handler = func(ctx context.Context, _ *Inbound) { <-ctx.Done() }
			srv, hop := startServer(t, cfg)
			peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
			stream := open(peer)
			runFlood(t, peer, f, stream)
			eventually(t, "the connection is gone", func() bool { return len(srv.Conns()) == 0 })
		})
	}
}

// TestShrinkingWindows: window is taken away from as many streams as there are, which costs accordingly; to give some is free.
func TestShrinkingWindows(t *testing.T) {
	for name, c := range map[string]struct {
		streams, times int
		sizes          [2]uint32
		cut            bool
	}{
		"of many streams, again and again": {streams: 200, times: 5, sizes: [2]uint32{0, 1 << 20}, cut: true},
		"of many streams, twice":           {streams: 200, times: 2, sizes: [2]uint32{0, 1 << 20}},
		"of very many streams, once":       {streams: 800, times: 1, sizes: [2]uint32{0, 1 << 20}},
		"of one stream":                    {streams: 1, times: 5, sizes: [2]uint32{0, 1 << 20}},
		"growing":                          {streams: 200, times: 5, sizes: [2]uint32{1 << 20, 1 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := serverConfig()
			cfg.MaxStreams = 1000
			cfg.Handler = func(ctx context.Context, _ *Inbound) { <-ctx.Done() }
			_, hop := startServer(t, cfg)
			peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
			for i := range c.streams {
				peer.connect(uint32(i*2+1), "x:1")
			}
			for range c.times {
				for _, v := range c.sizes {
					peer.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: v})
				}
			}
			peer.fr.WritePing(false, [8]byte{7})
			if got := peer.isCut(); got != c.cut {
				t.Errorf("cut: %v, want %v", got, c.cut)
			}
		})
	}
}

// isCut reads until the other end has answered a PING, or given the connection up.
func (p *rawPeer) isCut() bool {
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return true
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			return f.ErrCode == http2.ErrCodeEnhanceYourCalm
		case *http2.PingFrame:
			if f.IsAck() {
				return false
			}
		}
	}
}

func manyFields() []string {
	kv := []string{":method", "CONNECT", ":authority", "x:1"}
	for range 3000 {
		kv = append(kv, "a", "b")
	}
	return kv
}

// TestFloodsOfServers is the same the other way round.
func TestFloodsOfServers(t *testing.T) {
	floods := map[string]misuse{
		"1xx responses": {once: func(p *rawPeer, id uint32) { p.respond(id, "103", false) }},
		"push": {once: func(p *rawPeer, id uint32) {
			p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: id, PromiseID: 2, EndHeaders: true})
		}, code: http2.ErrCodeProtocol},
	}
	for name, f := range floodsOfAnyone {
		floods[name] = f
	}
	for name, f := range floods {
		t.Run(name, func(t *testing.T) {
			done := make(chan struct{})
			hop := serveApps(t, func(c *net.TCPConn) {
				defer c.Close()
				peer := newRawPeer(c, pki().server)
				peer.handshakeServer()
				peer.fr.WriteSettingsAck()
				runFlood(t, peer, f, peer.expect(http2.FrameHeaders).StreamID)
				<-done
			})
			p := startPool(t, clientConfig())
			_, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: "x:1"})
			close(done)
			var ce *ConnectionError
			if !errors.As(err, &ce) {
				t.Errorf("Open: %v", err)
			}
		})
	}
}

// TestHonestPeersAreNotCut is the control: what busy peers do stays below every allowance.
func TestHonestPeersAreNotCut(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	p := startPool(t, clientConfig())
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	keeper := openTunnel(t, p, hop, serveApps(t, echoByte))
	for i := range 1000 { // each refusal crosses our RST_STREAM on the wire
		if _, err := p.Open(testContext(t), Key{Addr: hop}, &Request{Authority: nobody.String()}); err == nil {
			t.Fatal("a tunnel to nobody")
		}
		if i%100 == 0 {
			pingPong(t, keeper.TCPConn)
		}
	}
	pingPong(t, keeper.TCPConn)
	if n := len(p.Conns()); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestHandshakesPerAddress: a client that leaves handshakes half done keeps no other one waiting, and one whose
// connections fail waits for longer and longer.
func TestHandshakesPerAddress(t *testing.T) {
	g := NewGuard()
	ctx := testContext(t)
	bad, good := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	var leave []func(bool)
	for range handshakesPerAddr {
		l, err := g.admit(ctx, bad, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	soon, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := g.admit(soon, bad, time.Now()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one handshake more: %v", err)
	}
	l, err := g.admit(ctx, good, time.Now())
	if err != nil {
		t.Fatalf("another address: %v", err)
	}
	l(false)
	begin := time.Now()
	for _, l := range leave {
		l(true)
	}
	if l, err = g.admit(ctx, bad, time.Now()); err != nil {
		t.Fatal(err)
	}
	l(false)
	if d := time.Since(begin); d < offenceWaitMax-100*time.Millisecond || d > offenceWaitMax+budget {
		t.Errorf("after %d offences the next handshake waited %v", handshakesPerAddr, d)
	}
	begin = time.Now()
	l, err = g.admit(ctx, good, time.Now())
	if err != nil || time.Since(begin) > offenceWaitMax/2 {
		t.Errorf("another address waited %v, %v", time.Since(begin), err)
	}
	l(false)
}

// TestOffencesAreWaitedForFromTheArrival: whoever has waited for something else meanwhile has waited for those, too.
func TestOffencesAreWaitedForFromTheArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		bad := netip.MustParseAddr("10.0.0.1")
		for range 2 * handshakesPerAddr {
			g.offend(bad)
		}
		for before, want := range map[time.Duration]time.Duration{0: offenceWaitMax, time.Second: offenceWaitMax - time.Second, time.Minute: 0} {
			began := time.Now()
			l, err := g.admit(t.Context(), bad, began.Add(-before))
			if err != nil || time.Since(began) != want {
				t.Errorf("%v after its arrival it waited %v: %v, %v", before, time.Since(began), want, err)
				continue
			}
			l(false)
		}
	})
}

// TestHandshakesAreSpread: those of one client do not all begin at once, and none that has no time left.
func TestHandshakesAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		bad, good := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		began := time.Now()
		var leave []func(bool)
		for n := range handshakesPerAddr {
			l, err := g.admit(t.Context(), bad, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, l)
			if took, want := time.Since(began), time.Duration(max(0, n+1-inARow))*shakeGap; took != want {
				t.Errorf("handshake %d began after %v, want %v", n, took, want)
			}
		}
		now := time.Now()
		l, err := g.admit(t.Context(), good, time.Now())
		if err != nil || time.Since(now) != 0 {
			t.Errorf("another client's began after %v: %v", time.Since(now), err)
		}
		l(false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		time.AfterFunc(time.Second-time.Second/admitLeft+time.Millisecond, func() { leave[0](false) })
		if _, err := g.admit(ctx, bad, time.Now()); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			t.Errorf("with less than a tenth of its time left: %v", err)
		}
		leave[1](false)
		if _, err = g.admit(t.Context(), bad, time.Now()); err != nil {
			t.Errorf("it has kept its place: %v", err)
		}
	})
}

// TestUnknownServersTakeNoPlaces: connections to a server that does not know yet whom to be do not keep their client from others.
func TestUnknownServersTakeNoPlaces(t *testing.T) {
	unknown := serverConfig()
	waiting, over := make(chan struct{}), make(chan struct{})
	defer close(over)
	unknown.TLS = func(context.Context) (*tls.Config, error) {
		waiting <- struct{}{}
		<-over
		return nil, errors.New("it is not known to the end")
	}
	known := serverConfig()
	known.Guard = unknown.Guard
	_, hopUnknown := startServer(t, unknown)
	_, hop := startServer(t, known)
	for range handshakesPerAddr {
		c, err := net.Dial("tcp", hopUnknown.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		<-waiting
	}
	c, err := net.Dial("tcp", hop.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := tls.Client(c, pki().client).HandshakeContext(testContext(t)); err != nil {
		t.Errorf("a server that is known: %v", err)
	}
}
