// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"crypto/tls"
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
	request(s *stream, f *http2.MetaHeadersFrame) error
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
	state         tls.ConnectionState
	remote, local netip.AddrPort
	since         time.Time
	until         time.Time // when the first of both ends' certificates ends: no new stream after that; zero is never
	flusherWork   sync.WaitGroup
	drainers      sync.WaitGroup
	turns         turns // server: of requests

	// Owned by the read loop.
	parser    *parser
	current   *stream // of the DATA frame being read, nil if its payload is dropped
	content   int     // bytes of the application in that frame, so far
	padded    int     // and of padding
	abuse     abuse
	small     *chunk // small payloads of smallOf that came together
	smallOf   *stream
	calmBegun uint // see calm
	calmSince time.Time
	tooEarly  int    // streams that were refused for what they sent before they were open, not booked yet
	useless   int    // records in a row that brought no bytes of HTTP/2
	message   []byte // of TLS, begun
	preface   int    // bytes of the client's preface still expected
	highestID uint32 // opened by the peer; read by others under mu

	// Guarded by the write lock.
	wmu     sync.Mutex
	scratch []byte
	ended   bool // close_notify is written, and nothing may follow
	encoder *hpack.Encoder
	block   bytes.Buffer

	control        control
	volume         volume
	controlPending atomic.Bool
	peerMaxFrame   atomic.Uint32
	peerTableSize  atomic.Uint32
	waiting        atomic.Int32 // streams in a waitList
	finishing      atomic.Bool  // close once flushed; set with mu held

	seenBytes, seenPieces uint64 // of volume; guarded by Pool.mu

	mu          sync.Mutex
	send        sendFlow
	streams     map[uint32]*stream
	active      int    // streams, reserved ones included
	nextID      uint32 // client: of the next stream
	peerStreams uint32 // client: how many streams the peer allows
	failed      bool
	cutOff      bool  // failed, and every stream with it
	offended    bool  // failed for what the peer did
	err         error // why, once failed
	ready       bool  // the peer's SETTINGS came
	acked       bool  // and its acknowledgement of ours
	draining    bool  // no new streams
	goAwayLast  uint32
	goAwaySent  bool      // first step of ours
	endSaid     bool      // GOAWAY and close_notify are written
	pingSent    time.Time // zero when none is unanswered
	pingAt      time.Time // next one
	pingLooked  time.Time // see isLate
	pingMoved   uint64
	idleFor     time.Duration // close after so long without a stream; 0 is never
	idleSince   time.Time
	timer       *time.Timer
}

// drainPing marks the PING whose answer ends the first step of a two-step GOAWAY; other PINGs carry keepPing.
const (
	keepPing  = 0x616d62_6c616200
	drainPing = 0x616d62_6c616201
	firstID   = 1 // of a client's streams
	lastAny   = 1<<31 - 1
)

func newConn(cfg Config, o owner, client bool, rec *recordConn, state *tls.ConnectionState) *conn {
	c := &conn{
		cfg: cfg, owner: o, client: client, rec: rec,
		state:  *state,
		remote: addrPort(rec.RemoteAddr()), local: addrPort(rec.LocalAddr()),
		since:   time.Now(),
		streams: make(map[uint32]*stream),
		nextID:  firstID, peerStreams: cfg.MaxStreams,
		goAwayLast: lastAny,
	}
	c.idleSince = c.since
	c.parser = newParser(c, cfg.MaxFrameSize, cfg.MaxHeaderList)
	c.encoder = hpack.NewEncoder(&c.block)
	c.send.window, c.send.initialWindow = floorWindow, floorWindow
	c.control.recv = newRecvFlow(&c.cfg)
	c.abuse = newAbuse(c.since)
	c.peerMaxFrame.Store(16 << 10)
	c.peerTableSize.Store(4096)
	if !client {
		c.preface = len(http2.ClientPreface)
		c.turns.guard, c.turns.addr = cfg.Guard, c.remote.Addr()
	}
	return c
}

// run serves a started connection until it has ended, and returns why; nil after a clean end.
func (c *conn) run() error {
	err := c.readLoop()
	c.fail(err)
	c.flusherWork.Wait()
	c.linger()
	c.rec.TCPConn.Close() // before the drainers are done: the peer may be waiting for it
	c.drainers.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// start sends the preface and starts what lives as long as the connection.
func (c *conn) start() {
	c.wmu.Lock() // a PING, or anything else, before SETTINGS is a connection error (RFC 9113 §3.4)
	c.flusherWork.Go(c.flushLoop)
	c.mu.Lock()
	c.pingAt = c.since.Add(c.cfg.PingInterval)
	c.timer = time.AfterFunc(c.nextTick(time.Now()), c.tick)
	c.mu.Unlock()
	var b bytes.Buffer
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StartWindow)},
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
	_ = fr.WriteSettings(settings...)
	if grow := c.control.recv.window - floorWindow; grow > 0 {
		_ = fr.WriteWindowUpdate(0, uint32(grow))
	}
	c.write(b.Bytes())
	c.unlockBatch()
}
