// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Field is a header field, sent as it is: names of pseudo fields begin with a colon.
type Field struct{ Name, Value string }

// Request is one request on a connection of its own.
type Request struct {
	To      string        // host:port of the TCP connection
	Fields  []Field       // in order; nothing is added
	Payload []byte        // sent in DATA after a 200; the stream ends with it
	Timeout time.Duration // of everything
}

// Answer is what came of a request.
type Answer struct {
	Local   netip.AddrPort    `json:"local"`
	Peer    string            `json:"peer,omitempty"` // the first URI of the server's certificate
	Status  int               `json:"status"`         // 0: no answer
	Fields  map[string]string `json:"fields,omitempty"`
	Payload []byte            `json:"payload,omitempty"`
	Reset   string            `json:"reset,omitempty"` // code of a RST_STREAM or GOAWAY instead of an end
}

// Connect sends r inside mutual TLS and reads the answer to its end. An error means that there was none.
func Connect(ctx context.Context, c *tls.Config, r Request) (Answer, error) {
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Timeout)
		defer cancel()
	}
	d := tls.Dialer{Config: c}
	raw, err := d.DialContext(ctx, "tcp", r.To)
	if err != nil {
		return Answer{}, fmt.Errorf("connect to %s: %w", r.To, err)
	}
	conn := raw.(*tls.Conn)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	x := &exchange{request: r, answer: Answer{Fields: map[string]string{}}}
	x.answer.Local = addrPort(conn.LocalAddr())
	if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 && len(certs[0].URIs) > 0 {
		x.answer.Peer = certs[0].URIs[0].String()
	}
	if err := x.run(conn); err != nil {
		return x.answer, fmt.Errorf("ask %s: %w", r.To, err)
	}
	return x.answer, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

const stream = 1

type exchange struct {
	request Request
	answer  Answer
	framer  *http2.Framer
}

func (x *exchange) run(conn io.ReadWriter) error {
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return err
	}
	x.framer = http2.NewFramer(conn, conn)
	x.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := x.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}); err != nil {
		return err
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range x.request.Fields {
		if err := enc.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value}); err != nil {
			return err
		}
	}
	err := x.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true})
	for done := false; err == nil && !done; {
		done, err = x.step()
	}
	if errors.Is(err, io.EOF) && x.answer.Status != 0 {
		return nil
	}
	return err
}

// step reads one frame.
func (x *exchange) step() (done bool, err error) {
	f, err := x.framer.ReadFrame()
	if err != nil {
		return false, err
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return false, x.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return false, x.framer.WritePing(true, f.Data)
		}
	case *http2.MetaHeadersFrame:
		return x.headers(f)
	case *http2.DataFrame:
		x.answer.Payload = append(x.answer.Payload, f.Data()...)
		return f.StreamEnded(), nil
	case *http2.RSTStreamFrame:
		x.answer.Reset = f.ErrCode.String()
		return true, nil
	case *http2.GoAwayFrame:
		if f.LastStreamID < stream {
			x.answer.Reset = f.ErrCode.String()
			return true, nil
		}
	}
	return false, nil
}

func (x *exchange) headers(f *http2.MetaHeadersFrame) (done bool, err error) {
	for _, h := range f.Fields {
		x.answer.Fields[h.Name] = h.Value
	}
	if x.answer.Status, err = strconv.Atoi(f.PseudoValue("status")); err != nil {
		return false, fmt.Errorf("status %q: %w", f.PseudoValue("status"), err)
	}
	if x.answer.Status != 200 || f.StreamEnded() {
		return true, nil
	}
	return false, x.framer.WriteData(stream, true, x.request.Payload)
}
