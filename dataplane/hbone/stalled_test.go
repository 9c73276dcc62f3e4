// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestPeerThatTakesNothingIsGrantedLittle: it may send on, a start window at a time, however much that comes to; and as
// much as others once it takes what the application says.
func TestPeerThatTakesNothingIsGrantedLittle(t *testing.T) {
	const total = 512 << 10
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		c.Write([]byte{1})
		io.Copy(io.Discard, c)
	})
	srv, hop := startServer(t, serverConfig())
	start := int(srv.cfg.StartWindow)
	connect := func(window uint32) *uploader {
		u := &uploader{rawPeer: rawClient(t, net.TCPAddrFromAddrPort(hop), http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})}
		u.connWindow, u.window = floorWindow, start
		u.connect(1, app.String())
		u.expect(http2.FrameHeaders)
		return u
	}

	reads := connect(1 << 20)
	reads.expect(http2.FrameData)
	if most, _ := reads.upload(t, total); most <= start {
		t.Errorf("control: a peer that reads got %d bytes of window at most", most)
	}
	reads.Close()
	eventually(t, "its connection is gone", func() bool { return len(srv.Conns()) == 0 })

	stalls := connect(0)
	eventually(t, "its stream is stalled", func() bool {
		srv.mu.Lock()
		defer srv.mu.Unlock()
		for c := range srv.conns {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.streams[1].isStalled()
		}
		return false
	})
	most, took := stalls.upload(t, total)
	if most > start {
		t.Errorf("a peer that takes nothing got %d bytes of window at once, want %d at most", most, start)
	}
	if least := (total/time.Duration(start) - 4) * stallGap; took < least {
		t.Errorf("a peer that takes nothing sent %d bytes in %v, want %v at least", total, took, least)
	}
	stalls.fr.WriteWindowUpdate(1, 1<<20)
	stalls.expect(http2.FrameData)
	if most, _ := stalls.upload(t, total); most <= start {
		t.Errorf("a peer that reads again got %d bytes of window at most", most)
	}
}

// uploader is a peer that sends on stream 1 what the windows allow.
type uploader struct {
	*rawPeer
	connWindow, window int
}

// upload sends n bytes, and says how much window the stream got at once and how long it took.
func (u *uploader) upload(t *testing.T, n int) (most int, took time.Duration) {
	t.Helper()
	begun := time.Now()
	chunk := make([]byte, 16<<10)
	for n > 0 {
		if m := min(n, len(chunk), u.window, u.connWindow); m > 0 {
			if err := u.fr.WriteData(1, false, chunk[:m]); err != nil {
				t.Fatal(err)
			}
			n, u.window, u.connWindow = n-m, u.window-m, u.connWindow-m
			continue
		}
		f, err := u.next(http2.FrameWindowUpdate)
		if err != nil {
			t.Fatal(err)
		}
		switch w := f.(*http2.WindowUpdateFrame); w.StreamID {
		case 0:
			u.connWindow += int(w.Increment)
		default:
			u.window += int(w.Increment)
			most = max(most, int(w.Increment))
		}
	}
	return most, time.Since(begun)
}

// TestBytesBeforeTheAnswer are bounded over all streams of a connection: beyond that the stream that sends them is refused,
// and those that wait are not.
func TestBytesBeforeTheAnswer(t *testing.T) {
	release := make(chan struct{})
	cfg := serverConfig()
	cfg.Budget = NewBudget(16 << 20)
	cfg.Handler = func(_ context.Context, in *Inbound) {
		<-release
		in.Refuse(503)
	}
	srv, hop := startServer(t, cfg)
	u := &uploader{rawPeer: rawClient(t, net.TCPAddrFromAddrPort(hop)), connWindow: floorWindow}
	const piece, streams = 16 << 10, 200
	answers := map[uint32]Code{} // by stream; of those that were refused
	for id := uint32(1); id < 2*streams; id += 2 {
		u.connect(id, "x:1")
		if id%4 == 3 { // it waits for its answer
			continue
		}
		for u.connWindow < piece {
			u.await(t, answers)
		}
		u.connWindow -= piece
		u.fr.WriteData(id, false, make([]byte, piece))
	}
	for len(answers) < streams/2-earlyMax/piece {
		u.await(t, answers)
	}
	close(release)
	for len(answers) < streams {
		u.await(t, answers)
	}
	refused := 0
	for id, code := range answers {
		if code != http2.ErrCodeRefusedStream {
			continue
		}
		if refused++; id%4 == 3 {
			t.Errorf("stream %d, which sent nothing, was refused", id)
		}
	}
	if want := streams/2 - earlyMax/piece; refused != want {
		t.Errorf("%d streams were refused, want the last %d", refused, want)
	}
	if used := srv.cfg.Budget.Used(); used != 0 {
		t.Errorf("%d bytes are still queued", used)
	}
}

// await notes one answer to a request, or window of the connection.
func (u *uploader) await(t *testing.T, answers map[uint32]Code) {
	t.Helper()
	f, err := u.next(http2.FrameWindowUpdate, http2.FrameRSTStream, http2.FrameHeaders)
	if err != nil {
		t.Fatal(err)
	}
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.WindowUpdateFrame:
		if id == 0 {
			u.connWindow += int(f.Increment)
		}
	case *http2.RSTStreamFrame:
		if _, answered := answers[id]; !answered {
			answers[id] = f.ErrCode
		}
	default:
		answers[id] = http2.ErrCodeNo
	}
}
