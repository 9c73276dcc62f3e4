// SPDX-License-Identifier: Apache-2.0

// Package child starts processes for an init and reaps everything that ends in its care: its own children, and the
// orphans that the kernel hands to it. It takes the place of os/exec there, because an init that waits for any child
// would steal the exit status of processes that os/exec started.
// Sources: pid_namespaces(7), capabilities(7), wait(2).
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spec describes a process. Nothing is inherited besides Files.
type Spec struct {
	Path  string // of the executable; there is no search
	Argv  []string
	Env   []string
	Dir   string     // "" is the parent's
	Files []*os.File // descriptors 0, 1, 2, …; the caller keeps its own
	Sys   *syscall.SysProcAttr

	// Bounds limits what the process and its descendants may ever do; nil leaves them the parent's rights.
	Bounds *Bounds
}

// Bounds are kept by the kernel across every exec.
type Bounds struct {
	Capabilities uint64 // bit n stands for capability n; all others are dropped from the bounding set
	NoNewPrivs   bool
}

// Table holds the running children of this process.
type Table struct {
	mu       sync.Mutex // held across fork, so that no exit is reaped before its process is in the table
	children map[int]*Process
	closed   bool
}

// NewTable is empty; Run must run for it to reap.
func NewTable() *Table { return &Table{children: map[int]*Process{}} }

// Process is a child. Its methods may be called concurrently.
type Process struct {
	PID  int
	done chan struct{}

	table  *Table
	status syscall.WaitStatus // set before done is closed
}

// Run reaps until ctx ends. One goroutine per process of this operating system may run it.
func (t *Table) Run(ctx context.Context) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		t.reap()
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
		}
	}
}

func (t *Table) reap() {
	for {
		t.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			t.mu.Unlock()
			continue
		}
		if err != nil || pid <= 0 {
			t.mu.Unlock()
			return
		}
		p := t.children[pid]
		delete(t.children, pid)
		t.mu.Unlock()
		if p != nil {
			p.status = status
			close(p.done)
		}
	}
}

// ErrClosed is returned by Start after Close.
var ErrClosed = errors.New("no more processes are started")

// Close makes every later Start fail, so that whoever ends all children can be done one day.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

// Start starts a process.
func (t *Table) Start(s Spec) (*Process, error) {
	if s.Bounds == nil {
		return t.fork(s)
	}
	type result struct {
		p   *Process
		err error
	}
	started := make(chan result)
	go func() {
		// Rights belong to threads. This one is given up: it ends with its goroutine, since it is never unlocked.
		runtime.LockOSThread()
		if err := s.Bounds.enter(); err != nil {
			started <- result{nil, fmt.Errorf("start %s: %w", s.Path, err)}
			return
		}
		p, err := t.fork(s)
		started <- result{p, err}
	}()
	r := <-started
	return r.p, r.err
}

func (t *Table) fork(s Spec) (*Process, error) {
	attr := &syscall.ProcAttr{Dir: s.Dir, Env: s.Env, Sys: s.Sys}
	for _, f := range s.Files {
		attr.Files = append(attr.Files, f.Fd())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("start %s: %w", s.Path, ErrClosed)
	}
	pid, err := syscall.ForkExec(s.Path, s.Argv, attr)
	runtime.KeepAlive(s.Files)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Path, err)
	}
	p := &Process{PID: pid, done: make(chan struct{}), table: t}
	t.children[pid] = p
	return p, nil
}

func (b *Bounds) enter() error {
	// First, for a capability that is inheritable comes back with the next exec, whatever the bounding set (capabilities(7)).
	if err := inheritNothing(); err != nil {
		return err
	}
	for c := uintptr(0); c < 64; c++ {
		if b.Capabilities&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the last capability of this kernel
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if !b.NoNewPrivs {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// inheritNothing empties this thread's inheritable and ambient sets.
func inheritNothing() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	if err == nil {
		sets[0].Inheritable, sets[1].Inheritable = 0, 0
		err = unix.Capset(&header, &sets[0])
	}
	if err != nil {
		return fmt.Errorf("clear inheritable capabilities: %w", err)
	}
	return nil
}

// Done is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is the process's exit code, or 128+n if signal n ended it; valid after Done.
func (p *Process) ExitCode() int {
	<-p.done
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// Signal sends sig, and never to another process that got the same number: a child keeps its number until it is reaped.
func (p *Process) Signal(sig syscall.Signal) error { return p.kill(p.PID, sig) }

// SignalGroup is Signal for the process group that p leads, as it does if it was started with Setsid or Setpgid.
func (p *Process) SignalGroup(sig syscall.Signal) error { return p.kill(-p.PID, sig) }

func (p *Process) kill(pid int, sig syscall.Signal) error {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if p.table.children[p.PID] != p {
		return fmt.Errorf("signal process %d: %w", p.PID, os.ErrProcessDone)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Kill ends the process with SIGKILL and waits until it is reaped.
func (p *Process) Kill() {
	if p.Signal(syscall.SIGKILL) == nil {
		<-p.done
	}
}
