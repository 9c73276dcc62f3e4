// SPDX-License-Identifier: Apache-2.0

package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
)

// ErrGone means that the init has ended, and every process of its namespaces with it.
var ErrGone = errors.New("its init process has ended")

// RefusedError says that an init could not do what it was told.
type RefusedError struct {
	Message string
	Errno   syscall.Errno // 0 if the kernel had no part in it
}

func (e *RefusedError) Error() string { return e.Message }

// Handle is the holder's end of an init. Its methods may be called concurrently.
type Handle struct {
	proc *child.Process
	conn *channel.Conn
	gone chan struct{} // closed when no more replies come

	mu        sync.Mutex
	next      uint64                 // guarded by mu
	waiting   map[uint64]chan answer // guarded by mu
	processes map[uint64]*Process    // guarded by mu
}

type answer struct {
	reply
	files []*os.File
}

// Process is a process that an init started.
type Process struct {
	PID int // in the init's PID namespace

	Terminal *os.File // the master end, if it was started with a terminal; the caller of Start closes it

	h    *Handle
	id   uint64
	done chan struct{}
	code int // set before done is closed

	mu    sync.Mutex
	pidfd *os.File // guarded by mu; nil once the process has ended
}

// Launch starts an init in new namespaces, as cloneflags says; argv is the command that calls Serve. The caller runs the
// handle's Run.
func Launch(t *child.Table, exe string, argv []string, cloneflags uintptr, log *os.File) (*Handle, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	ours, theirs, err := channel.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	proc, err := t.Start(child.Spec{
		Path: exe, Argv: argv, Env: []string{"GOMAXPROCS=1"}, Files: []*os.File{null, log, log, theirs},
		Sys: &syscall.SysProcAttr{Cloneflags: cloneflags, Setsid: true},
	})
	if err != nil {
		ours.Close()
		return nil, err
	}
	return &Handle{proc: proc, conn: ours, gone: make(chan struct{}), waiting: map[uint64]chan answer{}, processes: map[uint64]*Process{}}, nil
}

// PID is the init's, in the holder's PID namespace.
func (h *Handle) PID() int { return h.proc.PID }

// Gone is closed once the init has ended.
func (h *Handle) Gone() <-chan struct{} { return h.gone }

// Run receives the init's messages until it ends.
func (h *Handle) Run() {
	defer h.finish()
	for {
		var r reply
		files, err := h.conn.Receive(&r)
		if err != nil {
			return
		}
		h.mu.Lock()
		switch {
		case r.Exit != nil:
			h.ended(h.processes[r.ID], *r.Exit)
		case h.waiting[r.ID] != nil:
			h.waiting[r.ID] <- answer{r, files}
			delete(h.waiting, r.ID)
		default:
			channel.CloseAll(files) // nobody waits any more
		}
		h.mu.Unlock()
	}
}

// ended is called with mu held.
func (h *Handle) ended(p *Process, code int) {
	if p == nil {
		return
	}
	delete(h.processes, p.id)
	p.code = code
	close(p.done)
	p.keep(nil)
}

func (h *Handle) finish() {
	h.proc.Kill()
	h.conn.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.gone)
	for _, p := range h.processes {
		h.ended(p, 128+int(syscall.SIGKILL))
	}
}

// SetUp prepares the namespaces. It comes before anything else.
func (h *Handle) SetUp(ctx context.Context, s Setup) error {
	_, err := h.call(ctx, order{Setup: &s}, nil)
	return err
}

// Write places files.
func (h *Handle) Write(ctx context.Context, files ...File) error {
	_, err := h.call(ctx, order{Files: files}, nil)
	return err
}

// Start starts a process with the given standard streams, which the caller keeps, or without any if it gets a terminal. A
// command that is not there or cannot be executed is a *RefusedError.
func (h *Handle) Start(ctx context.Context, s Start, streams ...*os.File) (*Process, error) {
	p := &Process{h: h, done: make(chan struct{})}
	// Once sent, the order is followed: a caller that gave up would not know what it started.
	r, err := h.call(context.WithoutCancel(ctx), order{Start: &s}, p, streams...)
	if err != nil {
		return nil, err
	}
	p.PID = r.PID
	files := r.files
	if s.Terminal != nil && len(files) > 0 {
		p.Terminal, files = files[0], files[1:]
	}
	if len(files) > 0 {
		p.keep(files[0])
	}
	return p, nil
}

// keep holds on to a descriptor of the process while it runs.
func (p *Process) keep(pidfd *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd != nil {
		p.pidfd.Close()
	}
	p.pidfd = pidfd
	select {
	case <-p.done:
		if pidfd != nil {
			p.pidfd.Close()
			p.pidfd = nil
		}
	default:
	}
}

// Descriptor is a new descriptor of the process (pidfd_open(2)), nil if it has ended. The caller closes it.
func (p *Process) Descriptor() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd == nil {
		return nil
	}
	fd, err := unix.FcntlInt(p.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// Kill ends the init, and as far as it is PID 1 everything in its namespaces, and waits.
func (h *Handle) Kill() {
	h.proc.Kill()
	<-h.gone
}

func (h *Handle) call(ctx context.Context, o order, p *Process, files ...*os.File) (answer, error) {
	replied := make(chan answer, 1)
	h.mu.Lock()
	h.next++
	o.ID = h.next
	h.waiting[o.ID] = replied
	if p != nil { // before the order is sent: its end may be reported as soon as it has started
		p.id = o.ID
		h.processes[o.ID] = p
	}
	h.mu.Unlock()
	r, err := h.exchange(ctx, o, replied, files)
	if err != nil {
		h.mu.Lock()
		delete(h.waiting, o.ID)
		delete(h.processes, o.ID)
		h.mu.Unlock()
	}
	return r, err
}

func (h *Handle) exchange(ctx context.Context, o order, replied <-chan answer, files []*os.File) (answer, error) {
	if err := h.conn.Send(o, files...); err != nil {
		return answer{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	select {
	case r := <-replied:
		if r.Error != "" {
			return r, &RefusedError{Message: r.Error, Errno: syscall.Errno(r.Errno)}
		}
		return r, nil
	case <-h.gone:
		return answer{}, ErrGone
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

// Done is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is the process's exit code, or 128+n if signal n ended it. It waits for the end.
func (p *Process) ExitCode() int {
	<-p.done
	return p.code
}

// Signal sends sig. After the process's end it returns an error.
func (p *Process) Signal(ctx context.Context, sig syscall.Signal) error {
	return p.signal(ctx, signal{Process: p.id, Number: int(sig)})
}

// SignalGroup is Signal for the process and all it started that stayed in its process group.
func (p *Process) SignalGroup(ctx context.Context, sig syscall.Signal) error {
	return p.signal(ctx, signal{Process: p.id, Number: int(sig), Group: true})
}

func (p *Process) signal(ctx context.Context, s signal) error {
	select {
	case <-p.done:
		return fmt.Errorf("signal process: %w", os.ErrProcessDone)
	default:
	}
	_, err := p.h.call(ctx, order{Signal: &s}, nil)
	if err != nil && strings.HasSuffix(err.Error(), os.ErrProcessDone.Error()) { // init saw its end first, and says so in words
		return fmt.Errorf("signal process: %w", os.ErrProcessDone)
	}
	return err
}
