// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawPeer speaks HTTP/2 frame by frame, for everything that a well-behaved peer would not do.
type rawPeer struct {
	*tls.Conn
	fr     *http2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer
	opened uint32
}

func newRawPeer(c *net.TCPConn, server *tls.Config) *rawPeer {
	p := &rawPeer{}
	if server != nil {
		p.Conn = tls.Server(c, server)
	} else {
		p.Conn = tls.Client(c, pki().client)
	}
	p.SetDeadline(time.Now().Add(budget))
	initRawPeer(p, p.Conn)
	return p
}

func initRawPeer(p *rawPeer, rw io.ReadWriter) {
	p.fr = http2.NewFramer(rw, rw)
	p.fr.AllowIllegalWrites = true
	p.fr.SetMaxReadFrameSize(1 << 20)
	p.enc = hpack.NewEncoder(&p.block)
}

// handshakeServer reads the client's preface and sends SETTINGS.
func (p *rawPeer) handshakeServer(settings ...http2.Setting) {
	b := make([]byte, len(http2.ClientPreface))
	io.ReadFull(p.Conn, b)
	p.fr.WriteSettings(settings...)
}

// rawClient connects to a server under test.
func rawClient(t testing.TB, hop net.Addr, settings ...http2.Setting) *rawPeer {
	t.Helper()
	c, err := net.Dial("tcp", hop.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p := newRawPeer(c.(*net.TCPConn), nil)
	io.WriteString(p.Conn, http2.ClientPreface)
	p.fr.WriteSettings(settings...)
	p.fr.WriteSettingsAck()
	return p
}

func (p *rawPeer) headers(id uint32, endStream bool, kv ...string) {
	p.block.Reset()
	for i := 0; i < len(kv); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block.Bytes(), EndHeaders: true, EndStream: endStream})
}

func (p *rawPeer) connect(id uint32, authority string) {
	p.headers(id, false, ":method", "CONNECT", ":authority", authority)
}

func (p *rawPeer) respond(id uint32, status string, end bool) { p.headers(id, end, ":status", status) }

// next reads the next frame of one of the kinds, answering SETTINGS and PING meanwhile.
func (p *rawPeer) next(kinds ...http2.FrameType) (http2.Frame, error) {
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return nil, err
		}
		for _, k := range kinds {
			if f.Header().Type == k {
				return f, nil
			}
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				p.fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				p.fr.WritePing(true, f.Data)
			}
		}
	}
}

// expect is next for a frame that must come.
func (p *rawPeer) expect(kinds ...http2.FrameType) http2.FrameHeader {
	f, err := p.next(kinds...)
	if err != nil {
		panic(fmt.Sprintf("peer waits for %v: %v", kinds, err))
	}
	return f.Header()
}
