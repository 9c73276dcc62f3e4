// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"testing"
)

// TestQueueHoldsLittleMoreThanItsBytes, however they come.
func TestQueueHoldsLittleMoreThanItsBytes(t *testing.T) {
	for _, piece := range []int{1, 100, 511, 513, 2000, 2049, 6000, 7000, 16 << 10, 40 << 10} {
		var q queue
		var want []byte
		for range 40 {
			b := bytes.Repeat([]byte{byte(len(want))}, piece)
			want = append(want, b...)
			q.append(b)
			held := 0
			for c := q.head; c != nil; c = c.next {
				held += len(c.buf)
			}
			if most := max(512, 5*len(want)); held > most {
				t.Fatalf("%d bytes in pieces of %d are held in %d, want %d at most", len(want), piece, held, most)
			}
		}
		var got []byte
		for q.size > 0 {
			b := q.front()
			got = append(got, b...)
			q.consume(len(b))
		}
		if !bytes.Equal(got, want) {
			t.Errorf("pieces of %d came out changed", piece)
		}
	}
}
