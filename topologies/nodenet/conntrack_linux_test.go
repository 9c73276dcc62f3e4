// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"errors"
	"testing"
)

func TestInsist(t *testing.T) {
	interrupted := errors.New("interrupted")
	for _, c := range []struct {
		failures int
		want     error
	}{{0, nil}, {1, nil}, {4, nil}, {1000, interrupted}} {
		left := c.failures
		err := insist(func() error {
			if left == 0 {
				return nil
			}
			left--
			return interrupted
		})
		if !errors.Is(err, c.want) {
			t.Errorf("after %d failures: %v, want %v", c.failures, err, c.want)
		}
	}
}
