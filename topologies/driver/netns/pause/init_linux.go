// SPDX-License-Identifier: Apache-2.0

package pause

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	ossignal "os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
)

// ChannelFD is the descriptor that an init inherits its channel on.
const ChannelFD = 3

// initProcess serves the orders of one channel.
type initProcess struct {
	orders   *channel.Conn
	children *child.Table
	mounts   *builder // owned by serve

	wg        sync.WaitGroup
	mu        sync.Mutex
	processes map[uint64]*child.Process // guarded by mu; by the id of the order that started them
}

// Serve is the life of an init: it follows orders until the holder closes the channel, and then ends its children. As
// PID 1 of a namespace, its return ends everything in it.
func Serve(ctx context.Context) error {
	// No process of a pod can end its init. Notify rather than ignore: a signal that is ignored stays so in every program
	// that is started.
	unwanted := make(chan os.Signal, 1)
	ossignal.Notify(unwanted)
	defer ossignal.Stop(unwanted)

	conn, err := channel.FromFile(os.NewFile(ChannelFD, "holder"))
	if err != nil {
		return fmt.Errorf("this command is the init of a lab's pods, started by `lab hold`: %w", err)
	}
	p := &initProcess{orders: conn, children: child.NewTable(), mounts: newBuilder(), processes: map[uint64]*child.Process{}}
	ctx, cancel := context.WithCancel(ctx)
	p.wg.Go(func() { _ = p.children.Run(ctx) })
	err = p.serve()
	p.mu.Lock()
	for _, c := range p.processes {
		_ = c.Signal(syscall.SIGKILL)
	}
	p.mu.Unlock()
	cancel()
	return err
}

func (p *initProcess) serve() error {
	for {
		var o order
		files, err := p.orders.Receive(&o)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r := reply{ID: o.ID}
		pidfd, err := p.follow(&o, files, &r)
		if err != nil {
			r.Error = err.Error()
			if errno := syscall.Errno(0); errors.As(err, &errno) {
				r.Errno = int(errno)
			}
		}
		channel.CloseAll(files)
		err = p.orders.Send(r, pidfd...)
		channel.CloseAll(pidfd)
		if err != nil {
			return err
		}
		if o.Start != nil && r.Error == "" {
			p.wg.Go(func() { p.report(o.ID) })
		}
	}
}

// follow does what is ordered. Of a process that it started it returns the terminal, if it has one, and a descriptor.
func (p *initProcess) follow(o *order, files []*os.File, r *reply) ([]*os.File, error) {
	switch {
	case o.Setup != nil:
		return nil, p.mounts.setUp(o.Setup)
	case o.Files != nil:
		return nil, p.mounts.writeAll(o.Files)
	case o.Start != nil:
		return p.start(o, files, r)
	case o.Signal != nil:
		return nil, p.signal(o.Signal)
	}
	return nil, errors.New("an order without content")
}

func (p *initProcess) start(o *order, files []*os.File, r *reply) ([]*os.File, error) {
	streams := 3
	if o.Start.Terminal != nil {
		streams = 0
	}
	if len(files) != streams || len(o.Start.Argv) == 0 {
		return nil, fmt.Errorf("start process: got %d streams and %d arguments", len(files), len(o.Start.Argv))
	}
	path, err := search(o.Start.Argv[0], o.Start.Env)
	if err != nil {
		return nil, err
	}
	spec := child.Spec{
		Path: path, Argv: o.Start.Argv, Env: o.Start.Env, Dir: o.Start.Dir, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true}, Bounds: o.Start.Bounds,
	}
	var c *child.Process
	var with []*os.File
	if t := o.Start.Terminal; t != nil {
		var master *os.File
		c, master, err = p.startOnTerminal(spec, t)
		with = append(with, master)
	} else {
		c, err = p.children.Start(spec)
	}
	if err != nil {
		return nil, err
	}
	r.PID = c.PID
	p.mu.Lock()
	p.processes[o.ID] = c
	p.mu.Unlock()
	fd, err := unix.PidfdOpen(c.PID, 0)
	if err != nil {
		return with, nil // it ended at once and was reaped: its exit code follows
	}
	return append(with, os.NewFile(uintptr(fd), "pidfd")), nil
}

// report tells the holder when process id has ended. The answer to its start has been sent before.
func (p *initProcess) report(id uint64) {
	p.mu.Lock()
	c := p.processes[id]
	p.mu.Unlock()
	code := c.ExitCode()
	p.mu.Lock()
	delete(p.processes, id)
	p.mu.Unlock()
	_ = p.orders.Send(reply{ID: id, Exit: &code}) // a holder that is gone needs no report
}

func (p *initProcess) signal(s *signal) error {
	p.mu.Lock()
	c := p.processes[s.Process]
	p.mu.Unlock()
	if c == nil {
		return fmt.Errorf("signal process: %w", os.ErrProcessDone)
	}
	if s.Group {
		return c.SignalGroup(syscall.Signal(s.Number))
	}
	return c.Signal(syscall.Signal(s.Number))
}

// search finds an executable as execvp(3) does, with the PATH that the process will have: EACCES says that there are files
// of that name, but none that may be executed.
func search(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	missing := syscall.ENOENT
	for _, v := range env {
		dirs, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(dirs) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err != nil || info.IsDir() {
				continue
			}
			if unix.Access(path, unix.X_OK) == nil {
				return path, nil
			}
			missing = syscall.EACCES
		}
	}
	return "", fmt.Errorf("find %s in PATH: %w", name, missing)
}
