// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A goroutine with its stack is more memory than the rest of a tunnel, and Go never gives a goroutine's descriptor back. So a
// tunnel whose application says nothing has none: it rests, and whoever has news for it starts one. News from the application
// come through an epoll instance beside the runtime's, as that wakes only goroutines that wait.

// rest lets the goroutine that owns the stream go, and reports false if there is something to do for it: over says so, or else
// something changed while park ran. After true the stream may have another owner already, or be gone.
func (s *stream) rest(over func() bool, park func() bool) bool {
	s.told.Store(false)
	if over() || !park() {
		return false
	}
	return !s.told.Load() || !s.unpark()
}

// park leaves the stream without an owner, until rouse.
func (s *stream) park() bool {
	s.parked.Store(true)
	return true
}

// parkWatched has the application rouse it too; false if that cannot be.
func (s *stream) parkWatched() bool {
	s.reader.rc = nil
	s.mu.Lock()
	if !s.draining {
		s.app.part()
	}
	s.mu.Unlock()
	if watching.add(s) {
		return true
	}
	s.mu.Lock()
	s.app.rejoin()
	s.mu.Unlock()
	return false
}

// join readies the reader, at first and after a rest. os.ErrDeadlineExceeded says that the application has nothing to say
// still: somebody else had news.
func (s *stream) join() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reader.busy = false
	if s.silenced() {
		return os.ErrClosed
	}
	if s.app.apart {
		again, err := rawPeek(uintptr(s.app.fd))
		switch {
		case err != nil:
			return err
		case again:
			return os.ErrDeadlineExceeded
		}
		s.app.rejoin()
	}
	s.reader.rc = s.app.out.rc
	s.limitRead()
	return nil
}

// unpark makes the caller the stream's owner, unless somebody else is.
func (s *stream) unpark() bool {
	if !s.parked.CompareAndSwap(true, false) {
		return false
	}
	watching.remove(s)
	return true
}

// rouse gives a stream that rests an owner. It may be called with the connection's locks held.
func (s *stream) rouse() {
	if s.parked.Load() && s.parked.CompareAndSwap(true, false) {
		go s.awake() // whoever counts the stream waits for its end
	}
}

func (s *stream) awake() {
	watching.remove(s)
	s.goOn()
}

// allowRead bounds how long the application's next bytes are waited for. It leaves a deadline alone that is there to wake the
// reader of a stream that has ended.
func (s *stream) allowRead() {
	s.reader.busy = false
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.silenced() && s.app.polled != nil {
		s.limitRead()
	}
}

// limitRead does so. s.mu is held.
func (s *stream) limitRead() {
	_ = s.app.polled.SetReadDeadline(time.Now().Add(s.c.cfg.RestAfter)) // fails only on one that is closed, which a read will tell
}

// control calls use with the application's descriptor.
func (s *stream) control(use func(fd int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.app.control(use)
}

// watching is what all resting streams of the process are watched by.
var watching watcher

// watcher rouses streams that rest when their application has something to say, or is gone. It has a goroutine while there are
// streams.
type watcher struct {
	mu      sync.Mutex
	poll    *poll // nil while there are no streams
	streams map[uint64]*stream
	last    uint64
}

// poll is an epoll instance that the runtime waits for.
type poll struct {
	fd   int
	file *os.File
}

// watchEvents are reported once, and with them what cannot be left out: errors and the end of both directions.
const watchEvents = syscall.EPOLLIN | syscall.EPOLLRDHUP | 1<<30 // EPOLLONESHOT

// add parks s and watches it; false if that cannot be.
func (w *watcher) add(s *stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.poll == nil {
		p, err := newPoll()
		if err != nil {
			return false
		}
		w.poll, w.streams = p, make(map[uint64]*stream)
		go w.serve(p)
	}
	w.last++
	e := syscall.EpollEvent{Events: watchEvents, Fd: int32(w.last), Pad: int32(w.last >> 32)}
	added := false
	s.parked.Store(true)
	s.control(func(fd int) {
		added = syscall.EpollCtl(w.poll.fd, syscall.EPOLL_CTL_ADD, fd, &e) == nil
	})
	if !added {
		w.checkEmpty()
		return !s.parked.CompareAndSwap(true, false) // else it has been roused
	}
	s.watched = w.last
	w.streams[w.last] = s
	return true
}

// remove ends the watch over s, if there is one. The caller owns s.
func (w *watcher) remove(s *stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.watched == 0 {
		return
	}
	s.control(func(fd int) { _ = syscall.EpollCtl(w.poll.fd, syscall.EPOLL_CTL_DEL, fd, nil) })
	delete(w.streams, s.watched)
	s.watched = 0
	w.checkEmpty()
}

// checkEmpty has the goroutine look whether it is needed. w.mu is held.
func (w *watcher) checkEmpty() {
	if len(w.streams) == 0 {
		_ = w.poll.file.SetReadDeadline(time.Unix(1, 0))
	}
}

// serve lives while there are streams.
func (w *watcher) serve(p *poll) {
	defer p.file.Close()
	rc, err := p.file.SyscallConn()
	for err == nil && !w.over() {
		err = rc.Read(func(uintptr) bool {
			w.look(p)
			return false
		})
		if os.IsTimeout(err) {
			err = p.file.SetReadDeadline(time.Time{})
		}
	}
}

// over ends the watch if there is no stream.
func (w *watcher) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.streams) > 0 {
		return false
	}
	w.poll, w.streams = nil, nil
	return true
}

// look rouses the streams that there is news for. Many may end at the same time, so it does not start more goroutines before
// those have run.
func (w *watcher) look(p *poll) {
	var events [64]syscall.EpollEvent
	for {
		n, err := syscall.EpollWait(p.fd, events[:], 0)
		if err != nil || n == 0 {
			return
		}
		for _, e := range events[:n] {
			w.mu.Lock()
			s := w.streams[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
			w.mu.Unlock()
			if s != nil {
				s.rouse()
			}
		}
		runtime.Gosched()
	}
}

func newPoll() (*poll, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	_ = syscall.SetNonblock(fd, true) // so that the runtime's poller takes it
	f := os.NewFile(uintptr(fd), "resting tunnels")
	if err := f.SetReadDeadline(time.Time{}); err != nil { // it did not
		f.Close()
		return nil, err
	}
	return &poll{fd, f}, nil
}
