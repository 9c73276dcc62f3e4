// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // client-go speaks in its terms
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// killWithin bounds the end of a process whose caller has given up.
const killWithin = 10 * time.Second

// Exec implements lab.Driver. Kubernetes has no way to end a command that it runs, so in pods of workloads the workload
// binary starts it under a mark by which it and all that it started are found and killed when ctx ends; in pods of other
// images a command whose caller gives up goes on.
func (d *Driver) Exec(ctx context.Context, pod lab.PodRef, argv []string, stdio lab.Stdio) (int, error) {
	s, err := d.standing()
	if err != nil {
		return 0, err
	}
	exit, err := s.exec(ctx, pod, argv, stdio)
	if started := (*lab.StartError)(nil); err != nil && !errors.As(err, &started) {
		err = fmt.Errorf("exec in %s: %w", pod, err)
	}
	return exit, err
}

func (s *stand) exec(ctx context.Context, ref lab.PodRef, argv []string, stdio lab.Stdio) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("no command is given")
	}
	pod := s.pod(ref)
	if pod == nil {
		return 0, errors.New("there is no such pod")
	}
	ref = refOf(pod)
	container := pod.Spec.Containers[0]
	if container.Image != s.image {
		exit, err := s.api.stream(ctx, ref, container.Name, argv, stdio)
		return exit, startError(argv[0], err)
	}
	mark := rand.Text()
	refusal := &refusal{mark: mark}
	first := &stdio.Err
	if stdio.TTY != nil {
		first = &stdio.Out
	}
	refusal.to = *first
	*first = refusal
	start := func(ctx context.Context, argv []string, stdio lab.Stdio) (int, error) {
		if stdio.TTY != nil {
			return s.api.stream(ctx, ref, container.Name, argv, stdio)
		}
		gated, end := gates(stdio)
		defer end()
		return s.session(pod).run(ctx, argv, gated)
	}
	exit, err := start(ctx, append([]string{topologies.WorkloadBinary, workload.UnderCommand, mark}, argv...), stdio)
	if ctx.Err() != nil {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWithin)
		defer cancel()
		_, killErr := start(kill, []string{topologies.WorkloadBinary, workload.KillCommand, mark}, lab.Stdio{})
		if now := s.pods.get(ref); now == nil || now.UID != pod.UID || now.DeletionTimestamp != nil {
			killErr = nil // its processes end with it
		}
		return 0, errors.Join(context.Cause(ctx), killErr)
	}
	if errno := refusal.errno(); err == nil && errno != 0 {
		return 0, &lab.StartError{Err: fmt.Errorf("start %s: %w", argv[0], errno), Errno: errno}
	}
	return exit, startError(argv[0], err)
}

// refusal passes output on unless it begins with what the workload binary says of a command that it could not start.
type refusal struct {
	mark string
	to   io.Writer

	mu   sync.Mutex
	held []byte // guarded by mu
	open bool   // guarded by mu; it is output
}

func (r *refusal) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open {
		return r.pass(p)
	}
	r.held = append(r.held, p...)
	if begin := workload.Refusal(r.mark); strings.HasPrefix(string(r.held), begin) || strings.HasPrefix(begin, string(r.held)) {
		return len(p), nil
	}
	r.open = true
	if _, err := r.pass(r.held); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (r *refusal) pass(p []byte) (int, error) {
	if r.to == nil {
		return len(p), nil
	}
	return r.to.Write(p)
}

// errno says why the command was not started; 0 if it was.
func (r *refusal) errno() syscall.Errno {
	r.mu.Lock()
	defer r.mu.Unlock()
	text, ok := strings.CutPrefix(string(r.held), workload.Refusal(r.mark))
	if r.open || !ok {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return 0
	}
	return syscall.Errno(n)
}

// execByNode has a pod's node run a command in it, with what the pod's first container has. What the command prints last may be
// lost: ctr stops reading when it hears of the end.
func execByNode(ctx context.Context, host Host, pod *corev1.Pod, argv []string, stdio lab.Stdio) (int, error) {
	id, err := containerID(pod)
	if err != nil {
		return 0, err
	}
	return host.Exec(ctx, pod.Spec.NodeName, append([]string{"ctr", "--namespace=k8s.io", "task", "exec", "--exec-id=" + rand.Text(), id}, argv...), stdio)
}

// stream runs a command over the API server.
func (c *client) stream(ctx context.Context, ref lab.PodRef, container string, argv []string, stdio lab.Stdio) (int, error) {
	at := c.podURL(ref.Namespace, ref.Name, "exec")
	q := url.Values{"container": {container}, "command": argv}
	for name, wanted := range map[string]bool{
		"stdin": stdio.In != nil, "stdout": stdio.Out != nil, "stderr": stdio.Err != nil && stdio.TTY == nil, "tty": stdio.TTY != nil,
	} {
		if wanted {
			q.Set(name, "true")
		}
	}
	stdio, end := gates(stdio)
	defer end()
	o := remotecommand.StreamOptions{Stdin: stdio.In, Stdout: stdio.Out, Stderr: stdio.Err, Tty: stdio.TTY != nil}
	if !o.Tty && o.Stdin == nil && o.Stdout == nil && o.Stderr == nil {
		o.Stdout = io.Discard // the API server refuses a command without any
		q.Set("stdout", "true")
	}
	if stdio.TTY != nil {
		sizes := newSizes(ctx, stdio.TTY)
		defer sizes.end()
		o.Stderr, o.TerminalSizeQueue = nil, sizes
	}
	at.RawQuery = q.Encode()
	e, err := c.executor(at)
	if err != nil {
		return 0, err
	}
	err = e.StreamWithContext(klog.NewContext(ctx, quiet), o)
	if code := (exec.CodeExitError{}); errors.As(err, &code) {
		return code.Code, nil
	}
	return 0, err
}

// quiet is what client-go logs to: it would tell people's terminals of connections that we ended.
var quiet = logr.Discard()

// gates is stdio with output that nothing passes any more after end.
func gates(stdio lab.Stdio) (gated lab.Stdio, end func()) {
	var all []*gate
	for _, w := range []*io.Writer{&stdio.Out, &stdio.Err} {
		if *w != nil {
			g := &gate{to: *w}
			all, *w = append(all, g), g
		}
	}
	return stdio, func() {
		for _, g := range all {
			g.close()
		}
	}
}

// gate lets nothing pass once it is closed: a command whose caller has given up may go on to print.
type gate struct {
	mu     sync.Mutex
	to     io.Writer // guarded by mu
	closed bool      // guarded by mu
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, io.ErrClosedPipe
	}
	return g.to.Write(p)
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// executor speaks over a WebSocket, or over SPDY where the server has none.
func (c *client) executor(at *url.URL) (remotecommand.Executor, error) {
	old, err := remotecommand.NewSPDYExecutor(c.config, "POST", at)
	if err != nil {
		return nil, err
	}
	web, err := remotecommand.NewWebSocketExecutor(c.config, "GET", at.String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(web, old, upgradeRefused)
}

// sizes is a terminal's window as remotecommand asks for it.
type sizes struct {
	ctx    context.Context // of the command
	end    context.CancelFunc
	first  *remotecommand.TerminalSize
	resize <-chan lab.WindowSize
}

func newSizes(ctx context.Context, t *lab.Terminal) *sizes {
	s := &sizes{resize: t.Resize}
	s.ctx, s.end = context.WithCancel(ctx)
	if t.Size != (lab.WindowSize{}) {
		s.first = terminalSize(t.Size)
	}
	return s
}

func terminalSize(w lab.WindowSize) *remotecommand.TerminalSize {
	return &remotecommand.TerminalSize{Width: w.Cols, Height: w.Rows}
}

// Next implements remotecommand.TerminalSizeQueue.
func (s *sizes) Next() *remotecommand.TerminalSize {
	if first := s.first; first != nil {
		s.first = nil
		return first
	}
	select {
	case w, ok := <-s.resize:
		if !ok {
			return nil
		}
		return terminalSize(w)
	case <-s.ctx.Done():
		return nil
	}
}

// What runc and crun say of a command that is not there, or is no program, in the error of the exec.
var refusals = []struct {
	said  *regexp.Regexp
	errno syscall.Errno
}{
	{regexp.MustCompile(`(?i)executable file .*not found in \$PATH|no such file or directory`), syscall.ENOENT},
	{regexp.MustCompile(`(?i)permission denied|operation not permitted|is a directory`), syscall.EACCES},
	{regexp.MustCompile(`(?i)exec format error`), syscall.ENOEXEC},
}

// startError is err, as a *lab.StartError if it says that the command was not started.
func startError(command string, err error) error {
	if err == nil || apierrors.IsNotFound(err) || httpstream.IsUpgradeFailure(err) {
		return err
	}
	text := err.Error()
	if !strings.Contains(text, "exec failed") && !strings.Contains(text, "unable to start container process") {
		return err
	}
	for _, r := range refusals {
		if r.said.MatchString(text) {
			return &lab.StartError{Err: fmt.Errorf("start %s: %w", command, err), Errno: r.errno}
		}
	}
	return err
}
