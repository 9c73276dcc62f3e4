// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
)

// trace is a sink that writes down what it is told; neighbouring pieces of a payload count as one.
type trace struct {
	lines   []string
	payload bytes.Buffer
	padded  int
}

func (s *trace) add(format string, args ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

func (s *trace) data(id, length uint32) error {
	s.payload.Reset()
	s.padded = 0
	s.add("DATA %d of %d", id, length)
	return nil
}
func (s *trace) payloadOf() string { return fmt.Sprintf("%x pad %d", s.payload.Bytes(), s.padded) }
func (s *trace) dataEnd(end bool) error {
	s.add("  %s end %v", s.payloadOf(), end)
	return nil
}
func (s *trace) padding(n int) { s.padded += n }
func (s *trace) windowUpdate(id, n uint32) error {
	s.add("WINDOW_UPDATE %d by %d", id, n)
	return nil
}
func (s *trace) frame(f http2.Frame) error {
	if h, ok := f.(*http2.MetaHeadersFrame); ok {
		s.add("HEADERS %d %v truncated %v", h.StreamID, h.Fields, h.Truncated)
		return nil
	}
	s.add("%v", f)
	return nil
}
func (s *trace) ignored(http2.FrameType) error { return nil }
func (s *trace) streamError(id uint32, code Code, _ error) error {
	s.add("stream error %d %v", id, code)
	return nil
}

type traceSink struct{ *trace }

func (s traceSink) payload(b []byte) error { s.trace.payload.Write(b); return nil }

// traceOf parses b in pieces of the given size and returns what the sink was told, the error included.
func traceOf(b []byte, piece int, more bool) []string {
	s := &trace{}
	p := newParser(traceSink{s}, 1<<20, 4<<10)
	var held []byte
	for {
		n := min(piece, len(b))
		held, b = append(held, b[:n]...), b[n:]
		used, err := p.feed(held, more && len(b) > 0)
		if err != nil {
			s.add("error %v", err)
			return s.lines
		}
		held = held[used:]
		if len(b) == 0 {
			if len(held) > 0 {
				s.add("left over: %d bytes", len(held))
			}
			if p.reading && p.kind == http2.FrameData {
				s.add("  so far %s", s.payloadOf())
			}
			return s.lines
		}
	}
}

// sampleFrames is a stream of frames of every kind.
func sampleFrames() []byte {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82, 0x84}, EndHeaders: false})
	fr.WriteContinuation(1, true, []byte{0x87})
	fr.WriteData(1, false, []byte("hello"))
	fr.WriteDataPadded(1, false, []byte("padded"), make([]byte, 7))
	fr.WriteDataPadded(1, false, nil, make([]byte, 3))
	fr.WriteWindowUpdate(0, 17)
	fr.WritePriority(1, http2.PriorityParam{StreamDep: 3})
	fr.WriteRawFrame(0x7f, 0xff, 9, []byte("unknown"))
	fr.WritePing(false, [8]byte{1, 2, 3})
	fr.WriteWindowUpdate(1, 1<<31-1)
	fr.WriteData(1, true, nil)
	fr.WriteRSTStream(1, http2.ErrCodeCancel)
	fr.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
	return b.Bytes()
}

func TestParserReadsEveryFrame(t *testing.T) {
	want := []string{
		"[FrameHeader SETTINGS len=6]",
		"HEADERS 1 [header field \":method\" = \"GET\" header field \":path\" = \"/\" header field \":scheme\" = \"https\"] truncated false",
		"DATA 1 of 5", "  68656c6c6f pad 0 end false",
		"DATA 1 of 14", "  706164646564 pad 8 end false",
		"DATA 1 of 4", "   pad 4 end false",
		"WINDOW_UPDATE 0 by 17",
		"[FrameHeader PING len=8]",
		"WINDOW_UPDATE 1 by 2147483647",
		"DATA 1 of 0", "   pad 0 end true",
		"[FrameHeader RST_STREAM stream=1 len=4]",
		"[FrameHeader GOAWAY len=11]",
	}
	frames := sampleFrames()
	for _, piece := range []int{1, 2, 9, 10, 100, 1 << 20} {
		for _, more := range []bool{false, true} {
			if diff := cmp.Diff(want, traceOf(frames, piece, more)); diff != "" {
				t.Errorf("in pieces of %d, more %v (-want +got):\n%s", piece, more, diff)
			}
		}
	}
}

// FuzzParser: no input makes the parser panic or keep more than its bounds, and how the input is cut does not matter.
func FuzzParser(f *testing.F) {
	f.Add(sampleFrames(), uint16(3))
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x08\x00\x00\x00\x01\x00"), uint16(1))
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x05\x01\x00\x00\x00\x00\x03\x82\x84\x87"), uint16(7))
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		whole := traceOf(b, len(b)+1, false)
		for _, more := range []bool{false, true} {
			if diff := cmp.Diff(whole, traceOf(b, int(piece)+1, more)); diff != "" {
				t.Errorf("in pieces of %d, more %v (-whole +cut):\n%s", piece+1, more, diff)
			}
		}
	})
}

// FuzzHeaders: header blocks, the one part of the input with a memory (HPACK), stay within the list limit.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte{0x82, 0x84, 0x87, 0x41, 0x03, 'a', ':', '1'}, []byte{0x40, 1, 'x', 1, 'y'})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var b bytes.Buffer
		fr := http2.NewFramer(&b, nil)
		fr.WriteSettings()
		for i, block := range [][]byte{first, second} {
			half := len(block) / 2
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: block[:half]})
			fr.WriteContinuation(uint32(2*i+1), true, block[half:])
		}
		const limit = 512
		s := &sizes{trace: &trace{}}
		p := newParser(s, 1<<20, limit)
		_, err := p.feed(b.Bytes(), false)
		if s.largest > limit {
			t.Errorf("a header list of %d bytes came through (err %v)", s.largest, err)
		}
		if p.gathered.Cap() > 1<<20 {
			t.Errorf("%d bytes held", p.gathered.Cap())
		}
	})
}

type sizes struct {
	*trace
	largest uint32
}

func (s *sizes) payload([]byte) error { return nil }
func (s *sizes) frame(f http2.Frame) error {
	if h, ok := f.(*http2.MetaHeadersFrame); ok {
		n := uint32(0)
		for _, x := range h.Fields {
			n += x.Size()
		}
		s.largest = max(s.largest, n)
	}
	return nil
}

// FuzzRecords: wherever reads of the socket end, crypto/tls gets every byte of a handshake in order, and none beyond the
// record that it is reading.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 2, 1, 2, 23, 3, 3, 0, 0, 21, 3, 3, 0, 1, 9}, uint8(3), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, chunk, read uint8) {
		ends := map[int]bool{len(b): true}
		for at := 0; at+recordHeaderLen <= len(b); {
			at += recordHeaderLen + int(binary.BigEndian.Uint16(b[at+3:]))
			ends[at] = true
		}
		r := &recordReader{Conn: &choppy{rest: b, most: int(chunk) + 1}}
		var got []byte
		p := make([]byte, int(read)+1)
		for {
			n, err := r.Read(p)
			for i := 1; i < n; i++ {
				if ends[len(got)+i] {
					t.Fatalf("a read of %d bytes at %d goes beyond a record", n, len(got))
				}
			}
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
			if n == 0 {
				t.Fatal("nothing read")
			}
		}
		if !bytes.Equal(got, b) {
			t.Errorf("got %x, want %x", got, b)
		}
	})
}

// choppy yields at most so many bytes at once.
type choppy struct {
	net.Conn
	rest []byte
	most int
}

func (c *choppy) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.most)], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func TestQueueKeepsOrder(t *testing.T) {
	var q queue
	src, want, got := &pattern{}, &pattern{}, 0
	take := func(n int) {
		for n > 0 && q.size > 0 {
			b := q.front()
			m := min(n, len(b), 1000)
			expected := make([]byte, m)
			want.Read(expected)
			if !bytes.Equal(b[:m], expected) {
				t.Fatalf("wrong bytes after %d", got)
			}
			q.consume(m)
			n, got = n-m, got+m
		}
	}
	total := 0
	for i := range 200 {
		n := i * 37 % 5000
		b := make([]byte, n)
		io.ReadFull(src, b)
		q.append(b)
		total += n
		take(i * 31 % 4500)
	}
	take(total)
	if got != total || q.size != 0 || q.head != nil || q.tail != nil {
		t.Errorf("got %d of %d, left %+v", got, total, q)
	}
	q.append([]byte("dropped"))
	if n := q.clear(); n != 7 || q.size != 0 {
		t.Errorf("clear: %d", n)
	}
}
