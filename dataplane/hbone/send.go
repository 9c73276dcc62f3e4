// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// appReader reads an application's socket once it is readable, into a buffer and against window that are held only
// while there are bytes.
type appReader struct {
	s   *stream
	rc  syscall.RawConn // nil until join
	fn  func(fd uintptr) bool
	buf *[appBufSize]byte // bytes behind room for a frame header
	n   int
	err error

	busy  bool        // there were bytes since it last was looked at
	check *time.Timer // see awaitWindow
}

func (r *appReader) init(s *stream) {
	r.s = s
	r.fn = r.step
}

// read waits until there are bytes that may be sent: n of them in buf. n = 0 without an error says that window has to
// be waited for; io.EOF that the application ended its stream.
func (r *appReader) read() error {
	r.buf, r.n, r.err = nil, 0, nil
	if r.rc == nil {
		if err := r.s.join(); err != nil {
			return err
		}
	}
	if err := r.rc.Read(r.fn); err != nil {
		return err
	}
	return r.err
}

func (r *appReader) step(fd uintptr) bool {
	c := r.s.c
	limit := c.reserve(r.s, chunkMax)
	if limit == 0 {
		r.busy = true
		again, err := rawPeek(fd)
		if err == nil && !again {
			err = rawReset(fd)
		}
		r.err = err
		return !again || r.s.silenced()
	}
	buf := appBufs.get()
	n, again, err := rawRead(fd, buf[frameHeaderLen:frameHeaderLen+limit])
	if n < limit {
		c.unreserve(r.s, limit-n)
	}
	if n == 0 {
		appBufs.put(buf)
		r.err = err
		return !again
	}
	r.buf, r.n, r.busy = buf, n, true
	return true
}

// pump carries the application's bytes into frames until it ends its stream, or the stream dies. It reports true if the
// stream rests before that.
func (s *stream) pump() (rests bool) {
	for !s.pumped && !s.silenced() { // the owner of a moment may have come to its end
		err := s.reader.read()
		switch {
		case errors.Is(err, io.EOF):
			s.sendEnd()
			return false
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !s.reader.busy && s.rest(s.silenced, s.parkWatched) {
				return true
			}
			s.allowRead()
		case err != nil:
			if !s.silenced() { // else its deadline woke us
				s.appFailed("read", err)
			}
			return false
		case s.reader.n > 0:
			s.sendData()
			s.unstall()
			if s.onAnswer != nil {
				s.onAnswer()
				s.onAnswer = nil
			}
		case s.c.enlist(s, true):
			s.stall()
			s.awaitWindow()
		}
	}
	s.c.withdraw(s)
	return false
}

// sendData writes what the reader holds as DATA frames. A frame's header goes over the end of the payload before it,
// which is already encrypted by then.
func (s *stream) sendData() {
	c, buf, n := s.c, s.reader.buf, s.reader.n
	s.reader.buf = nil
	defer appBufs.put(buf)
	if !c.lockReserved(s) {
		c.unreserve(s, n)
		return
	}
	limit := min(int(c.peerMaxFrame.Load()), chunkMax)
	if records := (limit + frameHeaderLen) / recordPayload; records > 0 && limit < chunkMax {
		limit = records*recordPayload - frameHeaderLen // no record for a few bytes
	}
	for off := 0; off < n; {
		m := min(n-off, limit)
		putFrameHeader(buf[off:], m, http2.FrameData, 0, s.id)
		c.write(buf[off : off+frameHeaderLen+m])
		off += m
	}
	c.rec.claimed.Add(-int64(n))
	c.abuse.sent.Add(int64(n))
	c.volume.add(n)
	c.unlockBatch()
	s.mu.Lock()
	s.bytesOut += uint64(n)
	s.mu.Unlock()
}

// sendEnd passes the application's end of stream on.
func (s *stream) sendEnd() {
	if !s.c.lockBatch(s) {
		return
	}
	var b [frameHeaderLen]byte
	putFrameHeader(b[:], 0, http2.FrameData, http2.FlagDataEndStream, s.id)
	s.c.write(b[:])
	s.setOutEnd()
	s.c.unlockBatch()
}

func (s *stream) setOutEnd() {
	s.mu.Lock()
	s.outEnd = true
	s.mu.Unlock()
}

func putFrameHeader(b []byte, n int, kind http2.FrameType, flags http2.Flags, id uint32) {
	b[0], b[1], b[2], b[3], b[4] = byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags)
	binary.BigEndian.PutUint32(b[5:9], id)
}

// writeHeaders writes one header block; once are fields that the peer need not remember. The write lock is held.
func (c *conn) writeHeaders(id uint32, endStream bool, pseudo, fields, once []Header) {
	if size := min(c.peerTableSize.Load(), 4096); size != c.encoder.MaxDynamicTableSize() {
		c.encoder.SetMaxDynamicTableSize(size)
	}
	c.block.Reset()
	for i, list := range [3][]Header{pseudo, fields, once} {
		for _, h := range list {
			_ = c.encoder.WriteField(hpack.HeaderField{Name: h.Name, Value: h.Value, Sensitive: i == 2})
		}
	}
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if endStream {
		flags = http2.FlagHeadersEndStream
	}
	b := c.scratch[:0]
	for limit, rest := int(c.peerMaxFrame.Load()), c.block.Bytes(); ; {
		n := min(len(rest), limit)
		if n == len(rest) {
			flags |= http2.FlagHeadersEndHeaders
		}
		b = appendFrameHeader(b, n, kind, flags, id)
		b = append(b, rest[:n]...)
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
		kind, flags = http2.FrameContinuation, 0
	}
	c.scratch = b[:0]
	c.write(b)
}

// respond answers a request; it reports false when the stream has died.
func (s *stream) respond(status int, endStream bool, fields []Header) bool {
	if !s.c.lockBatch(s) {
		return false
	}
	s.replied.Store(true)
	s.c.writeHeaders(s.id, endStream, []Header{{":status", strconv.Itoa(status)}}, fields, nil)
	if endStream {
		s.setOutEnd()
	}
	s.c.unlockBatch()
	return true
}
