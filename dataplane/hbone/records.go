// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// unflushedMax is how many bytes may wait for the flusher before no new batch is started.
const unflushedMax = 256 << 10

// overrunMax is how many may wait at all. Batches stay far below; the rest are answers to a peer's KeyUpdates.
const overrunMax = 1 << 20

// errWouldBlock tells crypto/tls that nothing is buffered. It calls itself temporary, which keeps the tls.Conn usable:
// the part of a record that was read stays with it.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing buffered" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

var errWouldBlock net.Error = wouldBlock{}

// recordConn is the net.Conn beneath a tls.Conn. During the handshake it passes everything through. Once batching, a
// Read serves what fill took from the socket and a Write only appends, so that crypto/tls never holds a lock across a
// system call that could wait; flush and flushWait move the appended records to the socket.
type recordConn struct {
	*net.TCPConn
	rc       syscall.RawConn
	batching bool // set once, between handshake and first use

	// Read side, owned by the read loop.
	in       []byte // nil while nothing is buffered
	inR, inW int
	large    bool // the size of the next one
	fillErr  error
	fillFn   func(fd uintptr) bool
	wait     bool
	header   [5]byte // of the record that is passing through
	headerN  int
	recLeft  int // payload bytes of that record still to come

	// Write side.
	w         *writer
	handover  chan struct{} // the flusher has work
	inBatch   atomic.Bool   // whoever set it will flush
	unflushed atomic.Int64
	claimed   atomic.Int64 // bytes on their way from an application into a batch
	overrun   atomic.Bool  // overrunMax was reached

	mu       sync.Mutex
	out      *outBuf
	left     *outBuf // handed over by flush, partly written
	leftR    int
	flushing bool // someone writes to the socket, or left is set
	err      error
}

func newRecordConn(c *net.TCPConn) (*recordConn, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &recordConn{TCPConn: c, rc: rc, w: newWriter(rc), handover: make(chan struct{}, 1)}
	r.fillFn = r.fillStep
	return r, nil
}

// Read implements net.Conn for crypto/tls. It ends at a record's end, so that crypto/tls holds one record at a time.
func (r *recordConn) Read(p []byte) (int, error) {
	if !r.batching {
		n, err := r.TCPConn.Read(p)
		for b := p[:max(n, 0)]; len(b) > 0; {
			b = b[r.passRecord(b):]
		}
		return n, err
	}
	if r.overrun.Load() { // crypto/tls keeps the failed Write of an answer to itself
		return 0, connErr(http2.ErrCodeEnhanceYourCalm, "%d bytes unread by the peer", overrunMax)
	}
	if r.inR == r.inW {
		return 0, errWouldBlock
	}
	b := r.in[r.inR:r.inW]
	n := r.passRecord(b[:min(len(b), len(p))])
	copy(p, b[:n])
	r.inR += n
	return n, nil
}

// passRecord notes that bytes of b go to crypto/tls, at most to the end of the current record, and says how many.
func (r *recordConn) passRecord(b []byte) int {
	n := 0
	if r.recLeft == 0 {
		n = copy(r.header[r.headerN:], b)
		r.headerN += n
		if r.headerN < len(r.header) {
			return n
		}
		r.headerN = 0
		r.recLeft = int(binary.BigEndian.Uint16(r.header[3:]))
	}
	m := min(r.recLeft, len(b)-n)
	r.recLeft -= m
	return n + m
}

// buffered reports whether fill left bytes that were not read yet, or more are surely in the kernel.
func (r *recordConn) buffered() bool { return r.inR < r.inW }

// filled reports whether the last fill took all that fits, so that the kernel probably holds more.
func (r *recordConn) filled() bool { return r.in != nil && r.inW == len(r.in) }

// fill reads from the socket, waiting if told to. The buffer is held only while it holds bytes. It returns
// errWouldBlock when not waiting and nothing is there.
func (r *recordConn) fill(wait bool) error {
	r.wait, r.fillErr = wait, nil
	if err := r.rc.Read(r.fillFn); err != nil {
		return err
	}
	return r.fillErr
}

func (r *recordConn) fillStep(fd uintptr) bool {
	if r.in == nil || (r.large && len(r.in) == cipherSmall) {
		r.release()
		r.in = cipherBuf(r.large)
	}
	n, again, err := rawRead(fd, r.in)
	r.inR, r.inW = 0, n
	if n > 0 {
		r.large = n >= cipherSmall
		return true
	}
	r.release()
	if again && r.wait {
		return false
	}
	if again {
		err = errWouldBlock
	}
	r.fillErr = err
	return true
}

// release gives the drained buffer back.
func (r *recordConn) release() {
	if r.in != nil && r.inR == r.inW {
		freeCipherBuf(r.in)
		r.in, r.inR, r.inW = nil, 0, 0
	}
}

// Write implements net.Conn for crypto/tls.
func (r *recordConn) Write(p []byte) (int, error) {
	if !r.batching {
		return r.TCPConn.Write(p)
	}
	r.mu.Lock()
	if r.err != nil {
		err := r.err
		r.mu.Unlock()
		return 0, err
	}
	if r.unflushed.Load() > overrunMax {
		r.overrun.Store(true)
		r.mu.Unlock()
		return 0, io.ErrShortBuffer
	}
	if r.out == nil {
		r.out = newOutBuf(len(p))
	}
	r.out = r.out.append(p)
	r.unflushed.Add(int64(len(p)))
	r.mu.Unlock()
	if !r.inBatch.Load() { // an alert or an answer to KeyUpdate, from within a Read
		r.wakeFlusher()
	}
	return len(p), nil
}

// Deadlines belong to the flusher and the read loop; crypto/tls sets one when it closes.
func (r *recordConn) SetDeadline(t time.Time) error {
	if r.batching {
		return nil
	}
	return r.TCPConn.SetDeadline(t)
}

// SetWriteDeadline is SetDeadline's half.
func (r *recordConn) SetWriteDeadline(t time.Time) error {
	if r.batching {
		return nil
	}
	return r.TCPConn.SetWriteDeadline(t)
}

// room reports whether a batch may be started. What others are about to add counts, or as many streams as see room at
// the same time would each hold a buffer until the peer reads again.
func (r *recordConn) room() bool { return r.unflushed.Load()+r.claimed.Load() < unflushedMax }

func (r *recordConn) wakeFlusher() {
	select {
	case r.handover <- struct{}{}:
	default:
	}
}

// flushRounds bounds what one goroutine writes for others before it leaves the rest to the flusher.
const flushRounds = 8

// flush writes without waiting; what the kernel does not take is left to the flusher, which is woken.
func (r *recordConn) flush() error {
	r.mu.Lock()
	if r.flushing || r.out == nil || r.err != nil {
		err := r.err
		r.mu.Unlock()
		return err
	}
	r.flushing = true
	for round := 0; r.out != nil; round++ {
		o := r.out
		r.out = nil
		if round == flushRounds {
			r.left, r.leftR = o, 0
			r.mu.Unlock()
			r.wakeFlusher()
			return nil
		}
		r.mu.Unlock()
		n, err := r.w.write(o.b)
		r.unflushed.Add(-int64(n))
		r.mu.Lock()
		if err != nil {
			return r.failLocked(err)
		}
		if n < len(o.b) {
			r.left, r.leftR = o, n
			r.mu.Unlock()
			r.wakeFlusher()
			return nil
		}
		o.free()
	}
	r.flushing = false
	r.mu.Unlock()
	return nil
}

// flushWait writes until nothing is left. Without progress for patience it gives up. It is the flusher's; progress
// is called whenever bytes went out.
func (r *recordConn) flushWait(patience time.Duration, progress func()) error {
	r.mu.Lock()
	if r.err != nil || (r.flushing && r.left == nil) {
		err := r.err
		r.mu.Unlock()
		return err // whoever flushes goes on until the buffer is empty, or hands over
	}
	r.flushing = true
	for {
		if r.left == nil {
			r.left, r.leftR, r.out = r.out, 0, nil
		}
		o := r.left
		if o == nil {
			r.TCPConn.SetWriteDeadline(time.Time{})
			r.flushing = false
			r.mu.Unlock()
			return nil
		}
		r.TCPConn.SetWriteDeadline(time.Now().Add(patience)) // under mu, so that it cannot undo fail's
		r.mu.Unlock()
		n, err := r.w.writeWait(o.b[r.leftR:])
		r.unflushed.Add(-int64(n))
		progress()
		r.mu.Lock()
		if err != nil || r.err != nil {
			return r.failLocked(err)
		}
		if r.leftR += n; r.leftR == len(o.b) {
			o.free()
			r.left = nil
		}
	}
}

// failLocked makes every later write fail, and unlocks.
func (r *recordConn) failLocked(err error) error {
	if r.err == nil {
		r.err = err
	}
	r.flushing = false
	err = r.err
	r.mu.Unlock()
	return err
}

// idle reports whether nothing waits to be flushed.
func (r *recordConn) idle() bool { return r.unflushed.Load() == 0 }

// abandon makes every later write fail; the buffers are left to the garbage collector, as someone may be using them.
func (r *recordConn) abandon() {
	r.mu.Lock()
	_ = r.failLocked(io.ErrClosedPipe)
}
