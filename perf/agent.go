// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/ambientlab/ambientlab/perf/pod"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// agent is a process in a pod that does what it is told. Its methods must not overlap.
type agent struct {
	name string
	in   *os.File
	enc  *json.Encoder
	dec  *json.Decoder
	out  *os.File
	done chan struct{} // closed when the process has ended

	process daemonProcess
	link    pod.Link

	mu     sync.Mutex
	stderr bytes.Buffer
	err    error
}

// lockedWriter lets an error message be read while it is written.
type lockedWriter struct{ a *agent }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	return w.a.stderr.Write(p)
}

// startAgent runs perfpod in a pod and returns once it is ready. It ends with ctx, or with close.
func startAgent(ctx context.Context, l *lab.Lab, at lab.PodRef, args ...string) (*agent, error) {
	a := &agent{name: at.String() + ": perfpod " + args[0], done: make(chan struct{})}
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		inW.Close()
		return nil, err
	}
	a.in, a.out, a.enc, a.dec = inW, outR, json.NewEncoder(inW), json.NewDecoder(outR)
	go func() { // close waits for it
		defer close(a.done)
		exit, err := l.Exec(ctx, at, append([]string{"perfpod"}, args...), lab.Stdio{In: inR, Out: outW, Err: lockedWriter{a}})
		inR.Close()
		outW.Close()
		if err == nil && exit != 0 {
			err = fmt.Errorf("exit code %d", exit)
		}
		a.mu.Lock()
		a.err = err
		a.mu.Unlock()
	}()
	if err := a.meet(); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

// meet waits until the process is ready, and finds it on this machine.
func (a *agent) meet() error {
	if _, err := a.reply(); err != nil {
		return err
	}
	u, err := a.usage()
	if err != nil {
		return err
	}
	a.link = u.Link
	a.process, err = findProcess(u.Process)
	return err
}

func (a *agent) ask(r pod.Request) (pod.Reply, error) {
	if err := a.enc.Encode(r); err != nil {
		return pod.Reply{}, a.failed(err)
	}
	return a.reply()
}

func (a *agent) reply() (pod.Reply, error) {
	var r pod.Reply
	if err := a.dec.Decode(&r); err != nil {
		<-a.done
		return r, a.failed(err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("%s: %s", a.name, r.Error)
	}
	return r, nil
}

// failed says why the conversation broke: what the process wrote, if anything.
func (a *agent) failed(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if said := strings.TrimSpace(a.stderr.String()); said != "" {
		return fmt.Errorf("%s: %s", a.name, said)
	}
	if a.err != nil {
		err = a.err
	}
	return fmt.Errorf("%s: %w", a.name, err)
}

func (a *agent) usage() (pod.Usage, error) {
	r, err := a.ask(pod.Request{Usage: true})
	if err != nil {
		return pod.Usage{}, err
	}
	if r.Usage == nil {
		return pod.Usage{}, fmt.Errorf("%s: no usage in its answer", a.name)
	}
	return *r.Usage, nil
}

// close ends the process and waits for it.
func (a *agent) close() error {
	err := a.in.Close()
	<-a.done
	return errors.Join(err, a.out.Close())
}
