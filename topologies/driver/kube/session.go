// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/session"
)

// sessions run commands in pods of workloads. There is one per pod, kept open: to start a command through the API server, kubelet
// and the container runtime takes a quarter of a second, and scenarios start thousands.
type sessions struct {
	s    *stand
	ctx  context.Context // of the streams; this type's whole life is theirs
	stop context.CancelFunc

	mu sync.Mutex
	by map[types.UID]*podSession // guarded by mu
}

// podSession is that of one pod.
type podSession struct {
	mu   sync.Mutex       // held while one is opened
	open *session.Session // guarded by mu; nil before the first use
}

func newSessions(s *stand) *sessions {
	ctx, stop := context.WithCancel(context.Background())
	return &sessions{s: s, ctx: ctx, stop: stop, by: map[types.UID]*podSession{}}
}

func (ss *sessions) close() {
	ss.stop()
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, p := range ss.by {
		p.mu.Lock()
		if p.open != nil {
			p.open.Close()
		}
		p.mu.Unlock()
	}
	ss.by = map[types.UID]*podSession{}
}

// run runs a command in a pod. A session that has ended, as with its container, is opened again.
func (ss *sessions) run(ctx context.Context, pod *corev1.Pod, argv []string, stdio lab.Stdio) (int, error) {
	p := ss.of(pod)
	for again := false; ; again = true {
		now, err := p.get(ctx, func() (*session.Session, error) { return ss.dial(ctx, pod) })
		if err != nil {
			return 0, err
		}
		exit, err := now.Run(ctx, argv, stdio.In, stdio.Out, stdio.Err)
		if !errors.Is(err, session.ErrEnded) || again || ctx.Err() != nil {
			return exit, err
		}
		p.drop(now)
	}
}

func (ss *sessions) of(pod *corev1.Pod) *podSession {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	p := ss.by[pod.UID]
	if p == nil {
		p = &podSession{}
		ss.by[pod.UID] = p
	}
	return p
}

func (p *podSession) get(ctx context.Context, dial func() (*session.Session, error)) (*session.Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open != nil {
		select {
		case <-p.open.Done(): // with its container
			p.open = nil
		default:
		}
	}
	if p.open == nil {
		s, err := dial()
		if err != nil {
			return nil, errors.Join(context.Cause(ctx), err)
		}
		p.open = s
	}
	return p.open, nil
}

// drop forgets a session that has ended, unless another did and opened the next.
func (p *podSession) drop(was *session.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == was {
		was.Close()
		p.open = nil
	}
}

// dial starts the far end. What the API server, or the node, says of it, if it does not start, is the error's reason.
func (ss *sessions) dial(ctx context.Context, pod *corev1.Pod) (*session.Session, error) {
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		argv, stdio := []string{topologies.WorkloadBinary, workload.SessionCommand}, lab.Stdio{In: far, Out: far}
		exit, err := 0, error(nil)
		if ss.s.byNode {
			exit, err = ss.s.execByNode(ss.ctx, pod, argv, stdio)
		} else {
			exit, err = ss.s.stream(ss.ctx, refOf(pod), pod.Spec.Containers[0].Name, argv, stdio)
		}
		if err == nil {
			err = fmt.Errorf("it ended with %d", exit)
		}
		ended <- err
		far.Close()
	}()
	s, err := session.Dial(ctx, near)
	if err == nil {
		return s, nil
	}
	select {
	case err = <-ended: // its reader and its writer have ended with the pipe
	case <-ctx.Done():
	}
	return nil, err
}
