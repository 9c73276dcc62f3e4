// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
)

// Descriptors that a holder inherits.
const (
	LifelineFD = 3 // a pipe: its end of file ends a lab that is not detached, or not up yet
	HelloFD    = 4 // a pipe: takes one order.Hello
)

// Config says which lab to hold.
type Config struct {
	Dir      labdir.Dir
	Bin      string // the directory of the project's binaries
	Detached bool   // once up, last until Down, whatever happens to whoever started it
}

// holder is the lab's PID 1.
type holder struct {
	cfg      Config
	log      *slog.Logger
	children *child.Table
	listener *net.UnixListener
	down     chan struct{} // closed by the first Down
	downOnce sync.Once
	work     sync.WaitGroup  // connections, inits, and what a lab runs beside them
	life     context.Context // the holder's own, set by run: what a lab runs outlasts the request for it

	mu   sync.Mutex
	site *site // guarded by mu; nil before Up
	up   bool  // guarded by mu; Up has succeeded
}

// Run holds a lab until Down, until ctx ends, or until the lifeline does. It must be PID 1 of namespaces made for it;
// their end is its caller's exit.
func Run(ctx context.Context, c Config) error {
	if os.Getpid() != 1 {
		return errors.New("`lab hold` is the init of a lab's namespaces: `lab up` starts it")
	}
	debug.SetGCPercent(400) // a lab comes up in a second, and collects next to nothing in it
	hello := os.NewFile(HelloFD, "hello")
	lock, err := c.Dir.Acquire()
	if err != nil {
		return sayHello(hello, err)
	}
	defer lock.Close()
	h, err := newHolder(c)
	if err != nil {
		_ = c.Dir.Remove()
		return sayHello(hello, err)
	}
	if err := sayHello(hello, nil); err != nil {
		return errors.Join(err, c.Dir.Remove()) // nobody waits for this lab any more
	}
	return h.run(ctx)
}

func sayHello(w *os.File, err error) error {
	defer w.Close()
	var hello order.Hello
	if err != nil {
		hello = order.Hello{Error: err.Error(), Taken: errors.Is(err, labdir.ErrTaken)}
	}
	if sendErr := json.NewEncoder(w).Encode(hello); sendErr != nil && err == nil {
		return fmt.Errorf("say hello: %w", sendErr)
	}
	return err
}

func newHolder(c Config) (*holder, error) {
	if err := c.Dir.Clear(); err != nil {
		return nil, err
	}
	for _, dir := range []string{c.Dir.Logs(), c.Dir.Objects(), c.Dir.CA(), c.Dir.RootCert(), c.Dir.TLSKeys(), c.Dir.Pod(""), c.Dir.Node("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make lab directory: %w", err)
		}
	}
	if err := redirectOutput(c.Dir.Log("hold")); err != nil {
		return nil, err
	}
	if err := enterNamespaces(); err != nil {
		return nil, err
	}
	if err := probe(); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Dir.Socket(), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for clients: %w", err)
	}
	if err := os.Chmod(c.Dir.Socket(), 0o600); err != nil { // whoever may connect may do everything
		l.Close()
		return nil, fmt.Errorf("listen for clients: %w", err)
	}
	return &holder{
		cfg: c, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), children: child.NewTable(), listener: l, down: make(chan struct{}),
	}, nil
}

// redirectOutput sends what this process prints, a panic too, to a file: whoever started it may be gone by then.
func redirectOutput(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup2(int(f.Fd()), fd); err != nil {
			return fmt.Errorf("open log: %w", err)
		}
	}
	return nil
}

func (h *holder) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.life = ctx
	h.log.Info("lab stands", "name", h.cfg.Dir.Name(), "detached", h.cfg.Detached)
	var reaper sync.WaitGroup
	reapCtx, stopReaper := context.WithCancel(context.WithoutCancel(ctx))
	reaper.Go(func() { _ = h.children.Run(reapCtx) })
	h.work.Go(func() { h.accept(ctx) })
	h.log.Info("lab ends", "why", h.awaitEnd(ctx))
	h.listener.Close()
	cancel()
	h.tearDown()
	stopReaper()
	reaper.Wait()
	return h.cfg.Dir.Remove()
}

// awaitEnd returns when the lab is to end, and says why.
func (h *holder) awaitEnd(ctx context.Context) string {
	lost := make(chan struct{})
	go watchLifeline(lost) // ends with the process: a read of a pipe cannot be called off
	for {
		select {
		case <-ctx.Done():
			return "told to"
		case <-h.down:
			return "taken down"
		case <-lost:
			if !h.cfg.Detached || !h.isUp() {
				return "whoever held it is gone"
			}
			lost = nil
		}
	}
}

func (h *holder) isUp() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.up
}

func watchLifeline(lost chan<- struct{}) {
	_, _ = os.NewFile(LifelineFD, "lifeline").Read(make([]byte, 1))
	close(lost)
}

// tearDown ends every other process of the namespace and lets go of the mounts in the lab's directory. Links, rules and
// namespaces have no other owner than these processes.
func (h *holder) tearDown() {
	h.children.Close()
	for {
		if err := syscall.Kill(-1, syscall.SIGKILL); errors.Is(err, syscall.ESRCH) {
			break
		}
		time.Sleep(time.Millisecond) // until the reaper has them all
	}
	h.work.Wait()
	nodes, err := os.ReadDir(h.cfg.Dir.Node("")) // those that were only half made too
	if err != nil {
		h.log.Warn("mounts not let go of", "err", err)
	}
	for _, n := range nodes {
		_ = unix.Unmount(h.cfg.Dir.Node(n.Name(), "run"), unix.MNT_DETACH) // fails if there is none yet
	}
}
