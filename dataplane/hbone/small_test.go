// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"

	"golang.org/x/net/http2"
)

// TestSmallFrames: bytes that come one by one arrive in order, and give back window like any others.
func TestSmallFrames(t *testing.T) {
	_, hop := startServer(t, serverConfig())
	app := serveApps(t, echo)
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	peer.fr.WriteWindowUpdate(0, 1<<20)
	peer.connect(1, app.String())
	peer.expect(http2.FrameHeaders)
	const size = 200_000
	want := make([]byte, size)
	io.ReadFull(&pattern{}, want)
	window, connWindow := 16<<10, floorWindow
	var got []byte
	w := bufio.NewWriterSize(peer.Conn, 4<<10)
	for sent := 0; len(got) < size; {
		n := min(window, connWindow, size-sent, 1000)
		fr := http2.NewFramer(w, nil)
		for range n {
			fr.WriteData(1, false, want[sent:sent+1])
			sent++
		}
		window, connWindow = window-n, connWindow-n
		w.Flush()
		if n > 0 && sent < size {
			continue
		}
		f, err := peer.next(http2.FrameWindowUpdate, http2.FrameData)
		if err != nil {
			t.Fatalf("after %d bytes, %d back: %v", sent, len(got), err)
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			got = append(got, f.Data()...)
			peer.fr.WriteWindowUpdate(1, uint32(len(f.Data())))
		case *http2.WindowUpdateFrame:
			if f.StreamID == 0 {
				connWindow += int(f.Increment)
			} else {
				window += int(f.Increment)
			}
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the echo differs")
	}
}
