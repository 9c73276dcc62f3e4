// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
)

// FuzzRoundTrip: frames that we write are read back alike by our parser and by http2.Framer. Each byte pair of the script
// is one frame: what kind, and how large or for which stream.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte{0, 5, 1, 9, 2, 3, 3, 1, 4, 4, 0, 0, 0, 255})
	f.Fuzz(func(t *testing.T, script []byte) {
		wire := appendFrameHeader(nil, 0, http2.FrameSettings, 0, 0)
		for ; len(script) >= 2; script = script[2:] {
			n := int(script[1])
			id := uint32(2*n + 1)
			switch script[0] % 5 {
			case 0:
				wire = appendFrameHeader(wire, n, http2.FrameData, 0, id)
				wire = append(wire, bytes.Repeat([]byte{byte(n)}, n)...)
			case 1:
				wire = appendWindowUpdate(wire, id, uint32(n+1))
			case 2:
				wire = controlFrame{kind: http2.FramePing, n: uint64(n)}.append(wire)
			case 3:
				wire = controlFrame{kind: http2.FrameRSTStream, id: id, n: uint64(n)}.append(wire)
			case 4:
				wire = controlFrame{kind: http2.FrameGoAway, n: uint64(n)<<32 | 2}.append(wire)
			}
		}
		want := []string{}
		fr := http2.NewFramer(nil, bytes.NewReader(wire))
		for {
			x, err := fr.ReadFrame()
			if err != nil {
				break
			}
			switch x := x.(type) {
			case *http2.DataFrame:
				want = append(want, fmt.Sprintf("DATA %d of %d", x.StreamID, x.Length), fmt.Sprintf("  %x pad 0 end false", x.Data()))
			case *http2.WindowUpdateFrame:
				want = append(want, fmt.Sprintf("WINDOW_UPDATE %d by %d", x.StreamID, x.Increment))
			default:
				want = append(want, fmt.Sprint(x))
			}
		}
		if diff := cmp.Diff(want, traceOf(wire, len(wire)+1, false)); diff != "" {
			t.Errorf("-http2.Framer +parser:\n%s", diff)
		}
	})
}
