// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// echoBufs are in use only while there are bytes to send back.
var echoBufs = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// echo sends back what comes until the caller closes its side, then closes this one. A connection on which nothing comes
// costs its descriptor alone; io.Copy would wait with a pipe to splice through, which are two more.
func echo(c *net.TCPConn, r io.Reader) error {
	if br, ok := r.(*bufio.Reader); ok {
		if _, err := io.CopyN(c, br, int64(br.Buffered())); err != nil {
			return err
		}
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var e echoRead
	step := e.step
	for {
		if err := rc.Read(step); err != nil {
			return err
		}
		switch {
		case e.err != nil:
			return e.err
		case e.n == 0:
			return c.CloseWrite()
		}
		_, err := c.Write(e.buf[:e.n])
		echoBufs.Put(e.buf)
		if err != nil {
			return err
		}
	}
}

// echoRead is one read of a socket that has something to say: n bytes in buf, or none at the end.
type echoRead struct {
	buf *[32 << 10]byte
	n   int
	err error
}

func (e *echoRead) step(fd uintptr) bool {
	e.buf = echoBufs.Get().(*[32 << 10]byte)
	for {
		e.n, e.err = syscall.Read(int(fd), e.buf[:])
		if !errors.Is(e.err, syscall.EINTR) {
			break
		}
	}
	if e.n > 0 {
		return true
	}
	echoBufs.Put(e.buf)
	if errors.Is(e.err, syscall.EAGAIN) {
		return false
	}
	e.err = os.NewSyscallError("read", e.err)
	return true
}
