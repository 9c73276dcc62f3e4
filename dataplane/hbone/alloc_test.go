// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestDataPathAllocatesNothing feeds DATA and WINDOW_UPDATE into a connection and counts allocations from the parser
// to the application's socket and the windows.
func TestDataPathAllocatesNothing(t *testing.T) {
	if scale > 1 {
		t.Skip("the race detector allocates")
	}
	near, far := tcpPair(t)
	taken := make([]byte, 16<<10)
	wire, _ := tcpPair(t)
	rec, err := newRecordConn(wire)
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{cfg: Config{}.withDefaults(200, 64<<10), rec: rec, streams: map[uint32]*stream{}, highestID: 1}
	c.control.recv = newRecvFlow(&c.cfg)
	c.abuse = newAbuse(time.Now())
	c.parser = newParser(c, c.cfg.MaxFrameSize, c.cfg.MaxHeaderList)
	c.parser.started = true
	s := newStream(c)
	c.register(s, 1)
	if err := s.attach(far); err != nil {
		t.Fatal(err)
	}
	frames := appendFrameHeader(nil, 16<<10, http2.FrameData, 0, 1)
	frames = append(frames, make([]byte, 16<<10)...)
	frames = appendWindowUpdate(frames, 0, 1)
	frames = appendWindowUpdate(frames, 1, 1)
	control := make([]byte, 0, 1<<10)
	allocs := testing.AllocsPerRun(1000, func() {
		c.control.recv.window, s.recvWindow = 1<<20, 1<<20
		c.abuse.sent.Add(4 * bytesPerUpdate)
		if used, err := c.parser.feed(frames, false); err != nil || used != len(frames) {
			t.Fatal(used, err)
		}
		io.ReadFull(near, taken)
		control = appendWindowUpdate(control[:0], 0, c.connGrant())
		for _, s := range c.control.updates {
			s.announcing, s.credit = false, 0
		}
		c.control.updates = c.control.updates[:0]
	})
	if allocs != 0 {
		t.Errorf("%v allocations per DATA and two WINDOW_UPDATE frames", allocs)
	}
}
