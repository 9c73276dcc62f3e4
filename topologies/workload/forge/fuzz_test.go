// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"net/netip"
	"testing"
)

// FuzzAnswers: what is taken for an answer comes from whom the SYN was sent to, and says one of two things.
func FuzzAnswers(f *testing.F) {
	s := SYN{To: netip.MustParseAddrPort("10.0.0.2:8080")}
	f.Add(s.packet(netip.MustParseAddr("10.0.0.1")))
	f.Add([]byte{0x4f, 0, 0, 0, 0, 0, 0, 0, 64, 6})
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, ok := s.answers(p); ok && (r.From.Addr() != s.To.Addr() || (r.Answer != AnswerSYNACK && r.Answer != AnswerRST)) {
			t.Errorf("%x: %+v", p, r)
		}
	})
}
