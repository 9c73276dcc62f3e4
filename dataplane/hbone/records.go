// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// unflushedMax is how many bytes may wait for the flusher before no new batch is started.
const unflushedMax = 256 << 10

// wouldBlock says that no whole record is buffered.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing buffered" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

var errWouldBlock net.Error = wouldBlock{}

// recordConn is a TCP connection that carries TLS records, after the handshake. Records are opened from what fill took
// from the socket; sealed ones are collected in a batch, and flush and flushWait move published batches to the socket. So
// no lock is held across a system call that could wait.
type recordConn struct {
	*net.TCPConn
	rc syscall.RawConn

	// Read side, owned by the read loop.
	opener   *protection
	in       []byte // nil while nothing is buffered
	inR, inW int
	large    bool // the size of the next one
	full     bool // the last fill took all that fits
	part     *[recordHeaderLen + recordCipherMax]byte
	partLen  int // of a record whose end has not come, kept while the socket is empty
	fillErr  error
	fillFn   func(fd uintptr) bool
	wait     bool

	// Guarded by the connection's write lock.
	sealer     *protection
	rekeyAfter uint64
	batch      *outBuf

	// Write side.
	w         *writer
	handover  chan struct{} // the flusher has work
	unflushed atomic.Int64
	claimed   atomic.Int64 // bytes on their way from an application into a batch
	company   company

	mu       sync.Mutex
	out      *outBuf // the first of those published
	outLast  *outBuf
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
	r := &recordConn{TCPConn: c, rc: rc, w: newWriter(rc), rekeyAfter: rekeyAfter, handover: make(chan struct{}, 1)}
	r.fillFn = r.fillStep
	return r, nil
}

// open decrypts the next record into dst, which has room for recordCipherMax bytes, and says how many of its first bytes
// are content. It returns errWouldBlock when no whole record is buffered.
func (r *recordConn) open(dst []byte) (kind byte, n int, err error) {
	b := r.in[r.inR:r.inW]
	if len(b) < recordHeaderLen {
		return 0, 0, errWouldBlock
	}
	size, err := recordLen(b)
	if err != nil {
		return 0, 0, err
	}
	if len(b) < size {
		return 0, 0, errWouldBlock
	}
	r.inR += size
	return r.opener.open(dst, b[:size])
}

// buffered reports whether fill left bytes that were not read yet.
func (r *recordConn) buffered() bool { return r.inR < r.inW }

// filled reports whether the last fill took all that fits, so that the kernel probably holds more.
func (r *recordConn) filled() bool { return r.full }

// fill reads from the socket, waiting if told to. A buffer is held only while it holds bytes, and while the socket is
// empty one that is no larger than the record that has begun. It returns errWouldBlock when not waiting and nothing is there.
func (r *recordConn) fill(wait bool) error {
	r.wait, r.fillErr = wait, nil
	if err := r.rc.Read(r.fillFn); err != nil {
		return err
	}
	return r.fillErr
}

func (r *recordConn) fillStep(fd uintptr) bool {
	r.makeRoom()
	n, again, err := rawRead(fd, r.in[r.inW:])
	r.full = n == len(r.in)-r.inW
	if n > 0 {
		r.inW += n
		r.large = r.full || n >= cipherSmall
		return true
	}
	r.park()
	if again && r.wait {
		return false
	}
	if again {
		err = errWouldBlock
	}
	r.fillErr = err
	return true
}

// makeRoom readies the buffer for a read, behind the record that has begun.
func (r *recordConn) makeRoom() {
	if len(r.in) == cipherSmall && r.large {
		old := r.in
		r.in = cipherBuf(true)
		r.inR, r.inW = 0, copy(r.in, old[r.inR:r.inW])
		freeCipherBuf(old)
		return
	}
	if r.in != nil {
		r.inR, r.inW = 0, copy(r.in, r.in[r.inR:r.inW])
		return
	}
	r.in = cipherBuf(r.large)
	r.inR, r.inW = 0, 0
	if r.part != nil {
		r.inW = copy(r.in, r.part[:r.partLen])
		partBufs.put(r.part)
		r.part = nil
	}
}

// park gives the buffer back; what there is of a record goes into one of a record's size.
func (r *recordConn) park() {
	if r.inR < r.inW {
		r.part = partBufs.get()
		r.partLen = copy(r.part[:], r.in[r.inR:r.inW])
		r.inR = r.inW
	}
	r.release()
}

// release gives the drained buffer back.
func (r *recordConn) release() {
	if r.in != nil && r.inR == r.inW {
		freeCipherBuf(r.in)
		r.in, r.inR, r.inW, r.full = nil, 0, 0, false
	}
}

// seal adds b to the batch, in records of one kind. The write lock is held.
func (r *recordConn) seal(kind byte, b []byte) {
	if r.sealer.seq >= r.rekeyAfter {
		r.rekey()
	}
	switch size := sealedLen(len(b)); {
	case r.batch == nil:
		r.batch = newOutBuf(size)
	case r.batch.room() >= size:
	case len(r.batch.b) <= outSmall:
		r.batch = r.batch.grow(size)
	default:
		r.publish()
		r.batch = newOutBuf(size)
	}
	r.batch.b = r.sealer.seal(r.batch.b, kind, b)
}

// publish hands the batch to whoever flushes. The write lock is held.
func (r *recordConn) publish() {
	o := r.batch
	if o == nil {
		return
	}
	r.batch = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		o.free()
		return
	}
	r.unflushed.Add(int64(len(o.b)))
	switch last := r.outLast; {
	case r.out == nil:
		r.out, r.outLast = o, o
	case len(o.b) <= min(outSmall, last.room()):
		last.b = append(last.b, o.b...)
		o.free()
	default:
		last.next, r.outLast = o, o
	}
}

// take removes the first published buffer; nil if there is none. r.mu is held.
func (r *recordConn) take() *outBuf {
	o := r.out
	if o != nil {
		r.out = o.next
	}
	return o
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
const flushRounds = 32

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
		o := r.take()
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
			r.left, r.leftR = r.take(), 0
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

// abandon makes every later write fail, and the flusher end; the buffers are left to the garbage collector, as someone may be
// using them.
func (r *recordConn) abandon() {
	r.mu.Lock()
	_ = r.failLocked(io.ErrClosedPipe)
	r.wakeFlusher()
}
