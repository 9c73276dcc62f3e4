// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// execOnTerminal runs a command on a terminal of the pod, whose master end the holder hands over with its first reply.
func execOnTerminal(ctx context.Context, dir labdir.Dir, pod lab.PodRef, argv []string, stdio lab.Stdio) (int, error) {
	e, err := ask(ctx, dir, order.Request{Exec: &order.Exec{Pod: pod, Argv: argv, TTY: &stdio.TTY.Size}})
	if err != nil {
		return 0, err
	}
	defer e.close()
	var t *terminal
	for {
		reply, files, err := e.next(ctx)
		if err == nil && t == nil && len(files) == 1 {
			t, err = openTerminal(files[0], stdio)
		}
		channel.CloseAll(files)
		if err != nil && reply.Errno != 0 {
			err = &lab.StartError{Err: err, Errno: syscall.Errno(reply.Errno)}
		}
		if err != nil || reply.Done {
			if t != nil {
				t.end()
			}
			return reply.Exit, err
		}
	}
}

// terminal copies between a master end and a caller's streams.
type terminal struct {
	master  *os.File
	woken   *os.File // readable once stop is closed
	stop    *os.File
	copying sync.WaitGroup // of the output
	caller  sync.WaitGroup // of what the caller does: sizes and input
	done    chan struct{}
}

// openTerminal begins to copy. received stays the caller's.
func openTerminal(received *os.File, stdio lab.Stdio) (*terminal, error) {
	fd, err := unix.FcntlInt(received.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true) // for deadlines
	}
	if err != nil {
		return nil, fmt.Errorf("exec: take over terminal: %w", err)
	}
	t := &terminal{master: os.NewFile(uintptr(fd), "terminal"), done: make(chan struct{})}
	if t.woken, t.stop, err = os.Pipe(); err != nil {
		t.master.Close()
		return nil, fmt.Errorf("exec: %w", err)
	}
	if stdio.Out == nil {
		stdio.Out = io.Discard
	}
	t.copying.Go(func() { _, _ = io.Copy(stdio.Out, t.master) }) // ends with EIO when nobody has the other end
	t.caller.Go(func() { t.resize(stdio.TTY.Resize) })
	switch in := stdio.In.(type) {
	case nil:
	case *os.File:
		t.caller.Go(func() { t.typeFrom(in) })
	default:
		go func() { _, _ = io.Copy(t.master, in) }() // ends with the reader, which nobody can interrupt, or at the first write after end
	}
	return t, nil
}

// typeFrom copies from a file that may be a terminal, and stops when woken is closed: a read could not be interrupted.
func (t *terminal) typeFrom(in *os.File) {
	buf := make([]byte, 4096)
	fds := []unix.PollFd{{Fd: int32(in.Fd()), Events: unix.POLLIN}, {Fd: int32(t.woken.Fd())}}
	for {
		if _, err := unix.Poll(fds, -1); errors.Is(err, syscall.EINTR) {
			continue
		} else if err != nil || fds[1].Revents != 0 {
			return
		}
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := t.master.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_, _ = t.master.Write([]byte{4}) // what a terminal makes of its end: the end of a file
			return
		}
	}
}

// resize gives the terminal its caller's size; the kernel tells the processes on it.
func (t *terminal) resize(sizes <-chan lab.WindowSize) {
	for {
		select {
		case s, ok := <-sizes:
			if !ok {
				return
			}
			raw, err := t.master.SyscallConn()
			if err == nil {
				_ = raw.Control(func(fd uintptr) {
					_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
				})
			}
		case <-t.done:
			return
		}
	}
}

// end waits for the last output, or for what comes of it within outputDelay.
func (t *terminal) end() {
	close(t.done)
	t.stop.Close()
	_ = t.master.SetWriteDeadline(time.Now()) // nobody reads any more
	t.caller.Wait()
	_ = t.master.SetReadDeadline(time.Now().Add(outputDelay))
	t.copying.Wait()
	t.master.Close()
	t.woken.Close()
}
