// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// outputDelay is how long output is waited for once a process has ended, or its caller has given up: something that it
// started may hold the other end for ever.
const outputDelay = time.Second

// Exec implements lab.Driver. Output that what the process left behind prints more than outputDelay after its end is lost.
func (d *Driver) Exec(ctx context.Context, pod lab.PodRef, argv []string, stdio lab.Stdio) (int, error) {
	dir, err := d.standing()
	if err != nil {
		return 0, err
	}
	if stdio.TTY != nil {
		return execOnTerminal(ctx, dir, pod, argv, stdio)
	}
	s, err := openStreams(stdio)
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	e, err := ask(ctx, dir, order.Request{Exec: &order.Exec{Pod: pod, Argv: argv}}, s.theirs...)
	s.closeTheirs() // the process has its own by now, or there will be none
	if err != nil {
		s.wait()
		return 0, err
	}
	defer e.close()
	for {
		reply, files, err := e.next(ctx)
		channel.CloseAll(files)
		if err != nil && reply.Errno != 0 {
			err = &lab.StartError{Err: err, Errno: syscall.Errno(reply.Errno)}
		}
		if err != nil || reply.Done {
			s.wait()
			return reply.Exit, err
		}
	}
}

// streams are a process's three, and the pipes behind those that are no files.
type streams struct {
	theirs []*os.File // in, out, err
	opened []*os.File // those of theirs that are ours to close
	stdin  *os.File   // our end, nil if there is none
	read   []*os.File // our ends of the output
	output sync.WaitGroup
}

func openStreams(stdio lab.Stdio) (*streams, error) {
	s := &streams{}
	err := s.input(stdio.In)
	for _, w := range []io.Writer{stdio.Out, stdio.Err} {
		if err == nil {
			err = s.out(w)
		}
	}
	if err != nil {
		s.closeTheirs()
		s.wait()
		return nil, err
	}
	return s, nil
}

func (s *streams) add(f *os.File, ours bool) {
	s.theirs = append(s.theirs, f)
	if ours {
		s.opened = append(s.opened, f)
	}
}

func (s *streams) null(flag int) error {
	f, err := os.OpenFile(os.DevNull, flag, 0)
	if err == nil {
		s.add(f, true)
	}
	return err
}

func (s *streams) input(in io.Reader) error {
	if in == nil {
		return s.null(os.O_RDONLY)
	}
	if f, ok := in.(*os.File); ok {
		s.add(f, false)
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	s.add(r, true)
	s.stdin = w
	go func() { // ends with the reader, which nobody can interrupt, or at the first write after wait
		_, _ = io.Copy(w, in)
		w.Close()
	}()
	return nil
}

func (s *streams) out(out io.Writer) error {
	if out == nil {
		return s.null(os.O_WRONLY)
	}
	if f, ok := out.(*os.File); ok {
		s.add(f, false)
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	s.add(w, true)
	s.read = append(s.read, r)
	s.output.Go(func() {
		_, _ = io.Copy(out, r)
		r.Close()
	})
	return nil
}

func (s *streams) closeTheirs() {
	for _, f := range s.opened {
		f.Close()
	}
	s.opened = nil
}

// wait ends once all output has been copied, or what came of it within outputDelay.
func (s *streams) wait() {
	if s.stdin != nil {
		s.stdin.Close()
	}
	end := time.Now().Add(outputDelay)
	for _, r := range s.read {
		if r.SetReadDeadline(end) != nil {
			r.Close() // it is closed already, or we could wait for ever
		}
	}
	s.output.Wait()
}
