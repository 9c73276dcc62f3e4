// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"strconv"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// RFC 7541 §6.2.3: what is never indexed takes no room in the peer's dynamic table, where it would be in the place of what
// comes again.
func TestWhatComesOnceIsNotRemembered(t *testing.T) {
	c := &conn{ended: true} // nothing is written
	c.encoder = hpack.NewEncoder(&c.block)
	c.peerMaxFrame.Store(16 << 10)
	c.peerTableSize.Store(4096)
	again := []Header{{"baggage", "k8s.namespace.name=shop,k8s.deployment.name=cart"}}
	for name, once := range map[string]bool{"once": true, "again and again": false} {
		t.Run(name, func(t *testing.T) {
			var last int
			for i := range 100 {
				changes := []Header{{"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920" + strconv.Itoa(1000+i) + "-01"}}
				if once {
					c.writeHeaders(1, false, nil, again, changes)
				} else {
					c.writeHeaders(1, false, nil, append(again[:1:1], changes...), nil)
				}
				if n := baggageLen(t, c.block.Bytes()); i > 0 {
					last = max(last, n)
				}
			}
			if forgotten := last > 1; forgotten == once {
				t.Errorf("baggage takes up to %d bytes when it comes again", last)
			}
		})
	}
}

// baggageLen is the length of a block's first field.
func baggageLen(t *testing.T, block []byte) int {
	t.Helper()
	if block[0]&0x80 != 0 { // RFC 7541 §6.1: an index alone
		return 1
	}
	return len(block)
}
