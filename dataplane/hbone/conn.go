// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// owner is what a connection tells whoever manages it. Calls come without the connection's locks held.
type owner interface {
	// request starts a stream that the peer opened; nil headers mean that this end opens streams.
	request(s *stream, f *http2.MetaHeadersFrame)
	// changed says that streams ended, limits changed or the connection drains.
	changed(c *conn)
}

// conn is one HTTP/2 connection. Locks, in the order in which they may nest: wmu, stream.mu, mu, control.mu.
type conn struct {
	// Set once.
	cfg           Config
	client        bool
	owner         owner
	rec           *recordConn
	tls           *tls.Conn
	state         tls.ConnectionState
	remote, local netip.AddrPort
	since         time.Time
	gone          chan struct{} // closed when the read loop has ended
	flusherWork   sync.WaitGroup
	drainers      sync.WaitGroup
	idleFor       time.Duration // close after so long without a stream; 0 is never

	// Owned by the read loop.
	parser    *parser
	current   *stream // of the DATA frame being read, nil if its payload is dropped
	gotFirst  bool    // the peer's SETTINGS
	preface   int     // bytes of the client's preface still expected
	highestID uint32  // opened by the peer; read by others under mu

	// Guarded by the write lock.
	wmu     sync.Mutex
	scratch []byte
	encoder *hpack.Encoder
	block   bytes.Buffer

	control        control
	controlPending atomic.Bool
	peerMaxFrame   atomic.Uint32
	peerTableSize  atomic.Uint32
	waiting        atomic.Int32 // streams in a waitList
	finishing      atomic.Bool  // close once flushed; set with mu held

	mu          sync.Mutex
	send        sendFlow
	streams     map[uint32]*stream
	active      int    // streams, reserved ones included
	nextID      uint32 // client: of the next stream
	peerStreams uint32 // client: how many streams the peer allows
	failed      bool
	err         error // why, once failed
	ready       bool  // the peer's SETTINGS came
	draining    bool  // no new streams
	goAwayLast  uint32
	goAwaySent  bool      // first step of ours
	endSaid     bool      // GOAWAY and close_notify are written
	pingSent    time.Time // zero when none is unanswered
	pingAt      time.Time // next one
	idleSince   time.Time
	timer       *time.Timer
}

// drainPing marks the PING whose answer ends the first step of a two-step GOAWAY; other PINGs carry keepPing.
const (
	keepPing  = 0x616d62_6c616200
	drainPing = 0x616d62_6c616201
	lastAny   = 1<<31 - 1
)

// handshake makes a connection of a TCP connection: TLS, then batching. wrap is tls.Client or tls.Server.
func handshake(ctx context.Context, t *net.TCPConn, cfg *tls.Config, wrap func(net.Conn, *tls.Config) *tls.Conn) (*recordConn, *tls.Conn, error) {
	rec, err := newRecordConn(t)
	if err != nil {
		return nil, nil, err
	}
	cfg = cfg.Clone()
	cfg.DynamicRecordSizingDisabled = true
	tc := wrap(rec, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	if p := tc.ConnectionState().NegotiatedProtocol; p != "h2" {
		return nil, nil, fmt.Errorf("negotiate h2: peer speaks %q", p)
	}
	rec.batching = true
	return rec, tc, nil
}

func newConn(cfg Config, o owner, client bool, rec *recordConn, tc *tls.Conn) *conn {
	c := &conn{
		cfg: cfg, owner: o, client: client, rec: rec, tls: tc,
		state:  tc.ConnectionState(),
		remote: addrPort(rec.RemoteAddr()), local: addrPort(rec.LocalAddr()),
		since: time.Now(), gone: make(chan struct{}),
		streams: make(map[uint32]*stream),
		nextID:  1, peerStreams: cfg.MaxStreams,
		goAwayLast: lastAny,
	}
	c.idleSince = c.since
	c.parser = newParser(c, cfg.MaxFrameSize, cfg.MaxHeaderList)
	c.encoder = hpack.NewEncoder(&c.block)
	c.send.window, c.send.initialWindow = floorWindow, floorWindow
	c.control.recv.window = int64(cfg.ConnWindow)
	c.peerMaxFrame.Store(16 << 10)
	c.peerTableSize.Store(4096)
	if !client {
		c.preface = len(http2.ClientPreface)
	}
	return c
}

// run serves a started connection until it has ended, and returns why; nil after a clean end.
func (c *conn) run() error {
	err := c.readLoop()
	c.fail(err)
	close(c.gone)
	c.rec.wakeFlusher()
	c.flusherWork.Wait()
	c.drainers.Wait()
	c.rec.TCPConn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// start sends the preface and starts what lives as long as the connection.
func (c *conn) start() {
	c.flusherWork.Go(c.flushLoop)
	c.mu.Lock()
	c.pingAt = c.since.Add(c.cfg.PingInterval)
	c.timer = time.AfterFunc(c.nextTick(time.Now()), c.tick)
	c.mu.Unlock()
	var b bytes.Buffer
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		{ID: http2.SettingMaxFrameSize, Val: c.cfg.MaxFrameSize},
		{ID: http2.SettingMaxHeaderListSize, Val: c.cfg.MaxHeaderList},
	}
	if c.client {
		b.WriteString(http2.ClientPreface)
		settings = append(settings, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	} else {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.cfg.MaxStreams})
	}
	fr := http2.NewFramer(&b, nil)
	fr.WriteSettings(settings...)
	if grow := c.cfg.ConnWindow - floorWindow; grow > 0 {
		fr.WriteWindowUpdate(0, uint32(grow))
	}
	c.wmu.Lock()
	c.rec.inBatch.Store(true)
	c.write(b.Bytes())
	c.unlockBatch()
}

// readLoop reads until the connection ends. It waits for nothing but the socket.
func (c *conn) readLoop() error {
	for {
		if err := c.drainInput(); err != nil {
			return err
		}
		c.rec.release()
		if c.controlPending.Load() {
			c.kick()
		}
		if err := c.rec.fill(true); err != nil {
			return &ConnectionError{Err: err}
		}
	}
}

// drainInput handles everything that was read from the socket.
func (c *conn) drainInput() error {
	plain := plainBufs.get()
	defer plainBufs.put(plain)
	w := 0
	for {
		n, err := c.tls.Read(plain[w:])
		w += n
		blocked := err == errWouldBlock
		if blocked && c.rec.filled() {
			// The buffer was full, so the rest of this record is in the kernel: get it before writing half of it.
			if c.rec.fill(false) == nil {
				continue
			}
		}
		if err != nil && !blocked {
			return &ConnectionError{Err: err}
		}
		if w == 0 && blocked {
			return nil
		}
		if !blocked && w <= 3*recordPayload && c.rec.buffered() {
			continue // gather
		}
		used, err := c.consume(plain[:w], !blocked && (c.rec.buffered() || c.rec.filled()))
		if err != nil {
			return err
		}
		w = copy(plain[:], plain[used:w])
		if blocked {
			return nil
		}
	}
}

// consume parses b; see parser.feed.
func (c *conn) consume(b []byte, more bool) (int, error) {
	skipped := 0
	if c.preface > 0 {
		at := len(http2.ClientPreface) - c.preface
		skipped = min(len(b), c.preface)
		if string(b[:skipped]) != http2.ClientPreface[at:at+skipped] {
			return 0, connErr(http2.ErrCodeProtocol, "no HTTP/2 preface")
		}
		c.preface -= skipped
	}
	n, err := c.parser.feed(b[skipped:], more)
	return skipped + n, err
}

// flushLoop writes what flush could not write without waiting, and ends the connection when it is to finish.
func (c *conn) flushLoop() {
	for range c.rec.handover {
		if c.shouldFinish() {
			c.sayEnd()
		}
		err := c.rec.flushWait(c.cfg.PingTimeout, c.roomMade)
		if err != nil {
			c.fail(&ConnectionError{Err: fmt.Errorf("flush: %w", err)})
			return
		}
		c.kick()
		c.closeWhenFlushed()
	}
}

func (c *conn) shouldFinish() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finishing.Load() && !c.endSaid
}

// sayEnd writes GOAWAY and close_notify.
func (c *conn) sayEnd() {
	c.mu.Lock()
	c.endSaid = true
	last := c.highestID
	c.mu.Unlock()
	c.postGoAway(last, http2.ErrCodeNo)
	c.wmu.Lock()
	c.rec.inBatch.Store(true)
	c.writeControl()
	c.tls.CloseWrite()
	c.rec.inBatch.Store(false)
	c.wmu.Unlock()
}

// closeWhenFlushed ends the TCP stream after the last byte. The peer closes when it has seen that; the read loop waits
// for it, so that closing resets nothing.
func (c *conn) closeWhenFlushed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.endSaid && !c.failed && c.rec.idle() {
		c.rec.TCPConn.CloseWrite()
		c.rec.TCPConn.SetReadDeadline(time.Now().Add(c.cfg.PingTimeout))
	}
}

// fail ends the connection and every stream on it. Only the first call counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.failed {
		c.mu.Unlock()
		return
	}
	c.failed, c.draining = true, true
	if !c.finishing.Load() || c.active > 0 {
		c.err = err
	}
	dead := make([]*stream, 0, len(c.streams))
	for _, s := range c.streams {
		dead = append(dead, s)
	}
	last := c.highestID
	for _, l := range []*waitList{&c.send.forRoom, &c.send.forWindow} {
		for s := l.first; s != nil; s = l.first {
			c.leave(s)
			s.signal()
		}
	}
	c.timer.Stop()
	c.mu.Unlock()
	var ce *ConnectionError
	if errors.As(err, &ce) && ce.ours {
		c.goodbye(last, ce.Code)
	}
	c.rec.abandon()
	for _, s := range dead {
		s.die(err, true)
	}
	c.rec.TCPConn.SetDeadline(time.Unix(1, 0))
	c.owner.changed(c)
}

// goodbye tells the peer why, if that can be done at once.
func (c *conn) goodbye(last uint32, code Code) {
	if !c.wmu.TryLock() {
		return
	}
	b := controlFrame{kind: http2.FrameGoAway, n: uint64(last)<<32 | uint64(code)}.append(nil)
	c.rec.inBatch.Store(true)
	c.tls.Write(b)
	c.tls.CloseWrite()
	c.rec.inBatch.Store(false)
	c.wmu.Unlock()
	c.rec.flush()
}

func (c *conn) hasFailed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// isDraining reports whether no new stream may be opened, and how many are left.
func (c *conn) isDraining() (draining bool, active int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining, c.active
}

// finish closes the connection once everything written is flushed. No stream may be left.
func (c *conn) finish() {
	c.mu.Lock()
	c.finishing.Store(true)
	c.draining = true
	c.mu.Unlock()
	c.rec.wakeFlusher()
}
