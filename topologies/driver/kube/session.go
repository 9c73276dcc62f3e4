// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"io"
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
	by map[types.UID]*session.Lasting // guarded by mu
}

func newSessions(s *stand) *sessions {
	ctx, stop := context.WithCancel(context.Background())
	return &sessions{s: s, ctx: ctx, stop: stop, by: map[types.UID]*session.Lasting{}}
}

func (ss *sessions) close() {
	ss.stop()
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, l := range ss.by {
		l.Close()
	}
	ss.by = map[types.UID]*session.Lasting{}
}

// run runs a command in a pod.
func (ss *sessions) run(ctx context.Context, pod *corev1.Pod, argv []string, stdio lab.Stdio) (int, error) {
	return ss.of(pod).Run(ctx, argv, stdio.In, stdio.Out, stdio.Err)
}

func (ss *sessions) of(pod *corev1.Pod) *session.Lasting {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	l := ss.by[pod.UID]
	if l == nil {
		l = session.NewLasting(func(ctx context.Context) (*session.Session, error) { return ss.dial(ctx, pod) })
		ss.by[pod.UID] = l
	}
	return l
}

// dial starts the far end.
func (ss *sessions) dial(ctx context.Context, pod *corev1.Pod) (*session.Session, error) {
	return session.Over(ctx, func(in io.Reader, out io.Writer) (int, error) {
		argv, stdio := []string{topologies.WorkloadBinary, workload.SessionCommand}, lab.Stdio{In: in, Out: out}
		if ss.s.byNode {
			return ss.s.execByNode(ss.ctx, pod, argv, stdio)
		}
		return ss.s.stream(ss.ctx, refOf(pod), pod.Spec.Containers[0].Name, argv, stdio)
	})
}
