// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"sync"
	"syscall"
	"time"
)

// A connection to an application ends with shutdown, at once. Its descriptor is given back a moment later, together with those of
// others: package os tells the scheduler about each close, which wakes the runtime's monitor thread (see rawCall) unless it
// was awake a moment ago.
const (
	closeTogether = 10 * time.Millisecond
	closeMost     = 64 // at a time: this many descriptors wait at most
)

// closing is what the whole process is about to close.
var closing closer

type closer struct {
	mu      sync.Mutex
	waiting []io.Closer
	timer   *time.Timer
}

func (c *closer) add(one io.Closer) {
	c.mu.Lock()
	c.waiting = append(c.waiting, one)
	n := len(c.waiting)
	if n == 1 {
		c.arm()
	}
	c.mu.Unlock()
	if n >= closeMost {
		c.close()
	}
}

// arm has close called. c.mu is held.
func (c *closer) arm() {
	if c.timer == nil {
		c.timer = time.AfterFunc(closeTogether, c.close)
		return
	}
	c.timer.Reset(closeTogether)
}

func (c *closer) close() {
	c.mu.Lock()
	all := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	for _, one := range all {
		_ = one.Close()
	}
}

// rawShutdown ends a direction of a connection, or both.
func rawShutdown(fd, how int) {
	_, _, _ = syscall.RawSyscall(syscall.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0) // an error says that it has ended
}
