// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"net"
	"testing"

	"golang.org/x/net/http2"
)

// TestResetIsNoticedWithoutWindow: an application's reset reaches a peer that grants no window, although bytes wait
// before it.
func TestResetIsNoticedWithoutWindow(t *testing.T) {
	app := serveApps(t, func(c *net.TCPConn) {
		c.Write(make([]byte, 256<<10))
		c.Read(make([]byte, 1)) // until the test says so
		c.SetLinger(0)
		c.Close()
	})
	_, hop := startServer(t, serverConfig())
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	peer.connect(1, app.String())
	for got := uint32(0); got < floorWindow-sillyWindow; {
		got += peer.expect(http2.FrameData).Length
	}
	peer.fr.WriteData(1, false, []byte("x"))
	f, err := peer.next(http2.FrameRSTStream)
	if err != nil || f.(*http2.RSTStreamFrame).ErrCode != http2.ErrCodeConnect {
		t.Errorf("got %v, %v", f, err)
	}
}
