// SPDX-License-Identifier: Apache-2.0

package observability

import "sync"

// signal is a writer whose channel is closed by the first byte.
type signal struct {
	C    chan struct{}
	once sync.Once
}

func newSignal() *signal { return &signal{C: make(chan struct{})} }

func (s *signal) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.C) })
	return len(p), nil
}
