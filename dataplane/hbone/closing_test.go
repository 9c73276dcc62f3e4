// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"testing"
	"testing/synctest"
	"time"
)

type closeCount struct{ n *int }

func (c closeCount) Close() error {
	*c.n++
	return nil
}

// TestClosedTogether: descriptors are given back after a moment, and no more wait than closeMost.
func TestClosedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c closer
		closed := 0
		for round := range 3 {
			for n := range closeMost - 1 {
				c.add(closeCount{&closed})
				if closed != round*closeMost {
					t.Fatalf("round %d: %d closed after %d", round, closed, n+1)
				}
			}
			c.add(closeCount{&closed})
			if closed != (round+1)*closeMost {
				t.Fatalf("round %d: %d closed", round, closed)
			}
		}
		closed = 0
		for range 2 {
			c.add(closeCount{&closed})
		}
		time.Sleep(closeTogether)
		synctest.Wait()
		if closed != 2 {
			t.Errorf("%d of 2 closed after %s", closed, closeTogether)
		}
	})
}
