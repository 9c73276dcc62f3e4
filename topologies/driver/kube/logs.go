// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// logs keeps what the mesh's daemons write, in a file for each: kubelet forgets a pod's with the pod, and of restarts it
// knows the last alone. A file only grows.
type logs struct {
	s    *stand
	ctx  context.Context // of those that follow; this type's whole life is theirs
	stop context.CancelFunc
	// since is the time before which lines are an earlier lab's, as kubelet writes it; "" is that all are this one's. Set before
	// anything follows.
	since string

	mu      sync.Mutex
	follows map[types.UID]*follow // guarded by mu; by pod
	files   map[key]*os.File      // guarded by mu
	exits   map[key]int           // guarded by mu; the last exit code that was seen
	running sync.WaitGroup
}

// follow is one pod's log as it grows.
type follow struct {
	l   *logs
	key key

	mu     sync.Mutex
	pod    *corev1.Pod   // guarded by mu; as it was seen last
	gone   bool          // guarded by mu
	last   string        // guarded by mu; the time of the last line that is in the file, as kubelet writes it
	wake   chan struct{} // guarded by mu; closed at the next change
	opened string        // the container whose log is read; owned by run
}

func newLogs(s *stand) *logs {
	ctx, stop := context.WithCancel(context.Background())
	return &logs{s: s, ctx: ctx, stop: stop, follows: map[types.UID]*follow{}, files: map[key]*os.File{}, exits: map[key]int{}}
}

// changed is told of every pod, in order.
func (l *logs) changed(old, now *corev1.Pod) {
	p := now
	if p == nil {
		p = old
	}
	k, ok := l.s.fleet.keyOf(p)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := mainStatus(p); c != nil {
		for _, t := range []*corev1.ContainerStateTerminated{c.LastTerminationState.Terminated, c.State.Terminated} {
			if t != nil {
				l.exits[k] = int(t.ExitCode)
			}
		}
	}
	f := l.follows[p.UID]
	if f == nil {
		if now == nil || l.ctx.Err() != nil {
			return
		}
		f = &follow{l: l, key: k, last: l.since, wake: make(chan struct{})}
		l.follows[p.UID] = f
		l.running.Go(f.run)
	}
	if now == nil {
		delete(l.follows, p.UID)
	}
	f.set(func() { f.pod, f.gone = p, now == nil })
}

func (l *logs) lastExit(k key) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exits[k]
}

// close ends with everything that follows.
func (l *logs) close() {
	l.stop()
	l.running.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.files {
		f.Close()
	}
	l.files = map[key]*os.File{}
}

func (l *logs) path(k key) string {
	return filepath.Join(l.s.dir, strings.ReplaceAll(k.String(), " ", ".")+".log")
}

// write appends whole lines.
func (l *logs) write(k key, line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.files[k]
	if f == nil {
		var err error
		if f, err = os.OpenFile(l.path(k), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
			return err
		}
		l.files[k] = f
	}
	_, err := f.Write(line)
	return err
}

// catchUp waits until a daemon's file has every line that was written by now.
func (l *logs) catchUp(ctx context.Context, k key) error {
	for _, p := range l.s.fleet.pods(k) {
		l.mu.Lock()
		f := l.follows[p.UID]
		l.mu.Unlock()
		if f == nil {
			continue
		}
		if err := f.catchUp(ctx); err != nil {
			return err
		}
	}
	return nil
}

// open is a daemon's log with the lines that have come.
func (l *logs) open(k key) (io.ReadCloser, error) {
	file, err := os.Open(l.path(k))
	if errors.Is(err, os.ErrNotExist) {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	return file, err
}

func (f *follow) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.wake)
	f.wake = make(chan struct{})
}

func (f *follow) look() (pod *corev1.Pod, gone bool, last string, wake <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pod, f.gone, f.last, f.wake
}

// run copies the log of one container after the other, until the pod is gone.
func (f *follow) run() {
	for ctx := f.l.ctx; ctx.Err() == nil; {
		pod, gone, _, wake := f.look()
		c := mainStatus(pod)
		if c == nil || c.ContainerID == "" || c.State.Running == nil && c.ContainerID == f.opened {
			if gone {
				return
			}
			select {
			case <-wake:
			case <-ctx.Done():
			}
			continue
		}
		if f.missed(c) {
			f.copy(ctx, pod, &corev1.PodLogOptions{Container: c.Name, Previous: true})
		}
		f.opened = c.ContainerID
		f.copy(ctx, pod, &corev1.PodLogOptions{Container: c.Name, Follow: true})
		if gone {
			return
		}
		select { // the connection ended, or the container, of which we are about to be told
		case <-wake:
		case <-time.After(pollEvery):
		case <-ctx.Done():
		}
	}
}

// missed reports whether a container ended before this one without being seen.
func (f *follow) missed(c *corev1.ContainerStatus) bool {
	t := c.LastTerminationState.Terminated
	return t != nil && t.ContainerID != "" && t.ContainerID != f.opened && c.ContainerID != f.opened
}

// copy appends what is in a container's log and not yet in the file: times tell, as no line of a pod is older than the one
// before. It is best effort: kubelet may have forgotten the container.
func (f *follow) copy(ctx context.Context, pod *corev1.Pod, o *corev1.PodLogOptions) {
	o.Timestamps = true
	_, _, last, _ := f.look()
	if at, err := time.Parse(time.RFC3339Nano, last); err == nil {
		o.SinceTime = &metav1.Time{Time: at} // to the second
	}
	r, err := f.l.s.api.core.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, o).Stream(ctx)
	if err != nil {
		return
	}
	defer r.Close()
	for in := bufio.NewReaderSize(r, 64<<10); ; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		at, text, ok := bytes.Cut(line, []byte(" "))
		if !ok || last != "" && !before(last, string(at)) {
			continue
		}
		if f.l.write(f.key, text) != nil {
			return
		}
		f.set(func() { f.last = string(at) })
	}
}

// catchUp waits until the file has the line that is now the last.
func (f *follow) catchUp(ctx context.Context) error {
	pod, _, _, _ := f.look()
	c := mainStatus(pod)
	if c == nil || c.State.Running == nil {
		return nil
	}
	one := int64(1)
	o := &corev1.PodLogOptions{Container: c.Name, TailLines: &one, Timestamps: true}
	data, err := f.l.s.api.core.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, o).DoRaw(ctx)
	at, _, ok := bytes.Cut(data, []byte(" "))
	if err != nil || !ok {
		return nil // the pod goes, or has written nothing: the file has what there is
	}
	for {
		_, gone, last, wake := f.look()
		if gone || !before(last, string(at)) {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("lines written until %s have not come: %w", at, context.Cause(ctx))
		case <-f.l.ctx.Done():
			return errNoLab
		}
	}
}

// before compares times as kubelet writes them, of which the fractions differ in length.
func before(a, b string) bool {
	ta, errA := time.Parse(time.RFC3339Nano, a)
	tb, errB := time.Parse(time.RFC3339Nano, b)
	return errA != nil || errB == nil && ta.Before(tb)
}
