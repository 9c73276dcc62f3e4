// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// controlFrameMax bounds frames that are neither DATA nor part of a header block; the protocol's smallest
	// frame limit, which no sane SETTINGS or GOAWAY comes near.
	controlFrameMax = 16 << 10
	// headerFramesMax bounds HEADERS and CONTINUATION frames of one block: a block within the size limit needs few.
	headerFramesMax = 64
	// headersPerFrame is how many bytes of a header block are as much work as another frame.
	headersPerFrame = 32
)

// sink receives what a parser reads. A returned error ends the connection.
type sink interface {
	// data announces a DATA frame of length payload bytes, padding included.
	data(id uint32, length uint32) error
	// payload hands over part of the announced frame's application bytes.
	payload(b []byte) error
	// padding says that n bytes of the frame were padding.
	padding(n int)
	// dataEnd closes the announced frame.
	dataEnd(endStream bool) error
	windowUpdate(id, increment uint32) error
	// frame delivers every other frame that has a meaning.
	frame(f http2.Frame) error
	// ignored says that a frame without a meaning for us was skipped.
	ignored(kind http2.FrameType) error
	// streamError reports a frame that breaks one stream only.
	streamError(id uint32, code Code, cause error) error
}

// parser cuts a byte stream into frames. DATA and WINDOW_UPDATE are read by hand and without allocation, DATA is
// passed on in pieces; other frames are gathered whole, within bounds, and read by http2.Framer.
type parser struct {
	sink         sink
	maxFrameSize uint32
	maxBlock     int // encoded header block

	header  [frameHeaderLen]byte
	headerN int
	started bool // the first frame was seen
	begun   uint // how many frames; one of headers counts as several, see headersPerFrame

	// The frame being read.
	kind     http2.FrameType
	flags    http2.Flags
	id       uint32
	left     int // payload bytes to come
	reading  bool
	padKnown bool
	pad      int // DATA: padding still to come, the last bytes of left

	gathered bytes.Buffer // whole frames for the framer
	frames   int          // of the header block in gathered
	block    uint32       // stream whose header block is not complete, or 0
	framer   *http2.Framer
}

func newParser(s sink, maxFrameSize, maxHeaderList uint32) *parser {
	p := &parser{sink: s, maxFrameSize: maxFrameSize, maxBlock: int(maxHeaderList) + controlFrameMax}
	p.framer = http2.NewFramer(nil, &p.gathered)
	p.framer.SetMaxReadFrameSize(maxFrameSize)
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.framer.MaxHeaderListSize = maxHeaderList
	return p
}

// connErr is an error that ends the connection with code.
func connErr(code Code, format string, args ...any) error {
	return &ConnectionError{Code: code, Err: fmt.Errorf(format, args...), ours: true}
}

// feed reads b and reports how much of it was used. With more set, the tail of b may be left when it is part of a DATA
// payload that the next call can bring whole; otherwise everything is used.
func (p *parser) feed(b []byte, more bool) (used int, err error) {
	for used < len(b) || p.reading {
		rest := b[used:]
		if !p.reading {
			n := copy(p.header[p.headerN:], rest)
			used += n
			if p.headerN += n; p.headerN < frameHeaderLen {
				return used, nil
			}
			p.headerN = 0
			if err := p.begin(); err != nil {
				return used, err
			}
			continue
		}
		if len(rest) == 0 && p.left > 0 {
			return used, nil
		}
		if p.kind == http2.FrameData && more && len(rest) < min(p.left, chunkMax) {
			return used, nil
		}
		n, err := p.body(rest)
		used += n
		if err != nil {
			return used, err
		}
	}
	return used, nil
}

func (p *parser) begin() error {
	h := &p.header
	p.left = int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	p.kind, p.flags = http2.FrameType(h[3]), http2.Flags(h[4])
	p.id = binary.BigEndian.Uint32(h[5:]) & (1<<31 - 1)
	p.reading = true
	p.begun++
	if p.left > int(p.maxFrameSize) {
		return connErr(http2.ErrCodeFrameSize, "%v frame of %d bytes", p.kind, p.left)
	}
	if !p.started && (p.kind != http2.FrameSettings || p.flags&http2.FlagSettingsAck != 0) {
		return connErr(http2.ErrCodeProtocol, "first frame is %v, not SETTINGS", p.kind)
	}
	p.started = true
	if p.block != 0 && (p.kind != http2.FrameContinuation || p.id != p.block) {
		return connErr(http2.ErrCodeProtocol, "%v frame within the header block of stream %d", p.kind, p.block)
	}
	switch p.kind {
	case http2.FrameData:
		if p.id == 0 {
			return connErr(http2.ErrCodeProtocol, "DATA on stream 0")
		}
		p.padKnown, p.pad = p.flags&http2.FlagDataPadded == 0, 0
		return p.sink.data(p.id, uint32(p.left))
	case http2.FrameWindowUpdate:
		if p.left != 4 {
			return connErr(http2.ErrCodeFrameSize, "WINDOW_UPDATE of %d bytes", p.left)
		}
		return nil
	case http2.FrameHeaders, http2.FrameContinuation:
		return p.beginBlock()
	case http2.FrameRSTStream, http2.FrameSettings, http2.FramePing, http2.FrameGoAway, http2.FramePushPromise:
		if p.left > controlFrameMax {
			return connErr(http2.ErrCodeEnhanceYourCalm, "%v frame of %d bytes", p.kind, p.left)
		}
		p.gathered.Write(h[:])
	}
	return nil
}

func (p *parser) beginBlock() error {
	if p.kind == http2.FrameContinuation && p.block == 0 {
		return connErr(http2.ErrCodeProtocol, "CONTINUATION without a header block")
	}
	p.frames++
	p.begun += uint(p.left / headersPerFrame)
	if p.gathered.Len()+p.left > p.maxBlock || p.frames > headerFramesMax {
		return connErr(http2.ErrCodeEnhanceYourCalm, "header block of more than %d bytes or %d frames",
			p.maxBlock, headerFramesMax)
	}
	p.block = p.id
	p.gathered.Write(p.header[:])
	return nil
}

// body uses what it can of b, at least one byte if any is missing.
func (p *parser) body(b []byte) (int, error) {
	n := min(len(b), p.left)
	switch p.kind {
	case http2.FrameData:
		return p.dataBody(b[:n])
	case http2.FrameWindowUpdate:
		copy(p.header[4-p.left:], b[:n]) // the header is read, so its first bytes serve as scratch
		p.left -= n
		if p.left > 0 {
			return n, nil
		}
		p.reading = false
		return n, p.sink.windowUpdate(p.id, binary.BigEndian.Uint32(p.header[:])&(1<<31-1))
	case http2.FrameHeaders, http2.FrameContinuation, http2.FrameRSTStream, http2.FrameSettings, http2.FramePing,
		http2.FrameGoAway, http2.FramePushPromise:
		p.gathered.Write(b[:n])
		p.left -= n
		if p.left > 0 {
			return n, nil
		}
		p.reading = false
		return n, p.gatheredFrame()
	}
	// PRIORITY and frame types unknown to us carry nothing that we would act on (RFC 9113 §5.5).
	p.left -= n
	if p.reading = p.left > 0; p.reading {
		return n, nil
	}
	return n, p.sink.ignored(p.kind)
}

func (p *parser) dataBody(b []byte) (used int, err error) {
	if !p.padKnown {
		if p.left == 0 {
			return 0, connErr(http2.ErrCodeFrameSize, "padded DATA frame without a pad length")
		}
		if len(b) == 0 {
			return 0, nil
		}
		p.padKnown, p.pad = true, int(b[0])
		b, used = b[1:], 1
		p.left--
		if p.pad > p.left {
			return used, connErr(http2.ErrCodeProtocol, "padding of %d in %d bytes", p.pad, p.left)
		}
		p.sink.padding(1)
	}
	if n := min(len(b), p.left-p.pad, chunkMax); n > 0 {
		if err := p.sink.payload(b[:n]); err != nil {
			return used, err
		}
		p.left -= n
		used += n
		b = b[n:]
	}
	if n := min(len(b), p.left); n > 0 && p.left == p.pad {
		p.left -= n
		p.pad -= n
		used += n
		p.sink.padding(n)
	}
	if p.left > 0 {
		return used, nil
	}
	p.reading = false
	return used, p.sink.dataEnd(p.flags&http2.FlagDataEndStream != 0)
}

// overPadded reports whether a whole HEADERS frame has more padding than payload.
func overPadded(frame []byte) bool {
	flags := http2.Flags(frame[4])
	n := int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2])
	if !flags.Has(http2.FlagHeadersPadded) || n == 0 {
		return false
	}
	need := 1 + int(frame[frameHeaderLen])
	if flags.Has(http2.FlagHeadersPriority) {
		need += 5
	}
	return need > n
}

// gatheredFrame lets the framer read what was gathered, once that is a whole frame or header block.
func (p *parser) gatheredFrame() error {
	if p.block != 0 {
		if p.flags&http2.FlagHeadersEndHeaders == 0 {
			return nil
		}
		p.block, p.frames = 0, 0
	}
	if h := p.gathered.Bytes(); http2.FrameType(h[3]) == http2.FrameHeaders && overPadded(h) {
		// http2.Framer takes it for a stream's error, but the block is lost to HPACK's memory (RFC 9113 §6.2).
		return connErr(http2.ErrCodeProtocol, "padding of %d in HEADERS", h[frameHeaderLen])
	}
	f, err := p.framer.ReadFrame()
	if p.gathered.Len() > 0 {
		p.gathered.Reset() // the framer gave up within a header block; it says so with a connection error
	}
	if p.gathered.Cap() > controlFrameMax {
		p.gathered = bytes.Buffer{}
	}
	var se http2.StreamError
	var ce http2.ConnectionError
	switch {
	case err == nil:
		return p.sink.frame(f)
	case errors.As(err, &se):
		return p.sink.streamError(se.StreamID, se.Code, se)
	case errors.As(err, &ce):
		return &ConnectionError{Code: Code(ce), Err: err, ours: true}
	case errors.Is(err, http2.ErrFrameTooLarge):
		return &ConnectionError{Code: http2.ErrCodeFrameSize, Err: err, ours: true}
	}
	return &ConnectionError{Code: http2.ErrCodeProtocol, Err: err, ours: true}
}
