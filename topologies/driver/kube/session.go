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

// Connections are a process's ways to one cluster: a client of its API server, and sessions that run commands in pods. Labs that follow
// one another on the cluster may share them. Make them with NewConnections; whoever did closes them, after the last lab.
type Connections struct {
	ctx  context.Context // of the streams; this type's whole life is theirs
	stop context.CancelFunc

	mu       sync.Mutex
	api      *client                    // guarded by mu; nil before the first lab
	sessions map[sessionKey]*podSession // guarded by mu
}

// sessionKey is a pod, and who starts commands in it.
type sessionKey struct {
	pod    types.UID
	byNode bool // its node, not the API server
}

type podSession struct {
	ref lab.PodRef
	*session.Lasting
}

// NewConnections has none open yet.
func NewConnections() *Connections {
	c := &Connections{sessions: map[sessionKey]*podSession{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Close ends them, and commands that run in pods. Later commands are not started.
func (c *Connections) Close() {
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.sessions {
		l.Close()
	}
	clear(c.sessions)
}

// client is the way to the API server of the cluster that o names.
func (c *Connections) client(ctx context.Context, o Options) (*client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api != nil {
		return c.api, nil
	}
	config, err := o.restConfig(ctx)
	if err != nil {
		return nil, err
	}
	c.api, err = connect(config)
	return c.api, err
}

// session runs commands in a pod of a workload. There is one per pod, kept open: to start a command through the API server, kubelet
// and the container runtime takes a quarter of a second, and scenarios start thousands.
func (s *stand) session(pod *corev1.Pod) *session.Lasting {
	c := s.connections
	c.mu.Lock()
	defer c.mu.Unlock()
	k := sessionKey{pod.UID, s.byNode}
	if l := c.sessions[k]; l != nil {
		return l.Lasting
	}
	for old, l := range c.sessions { // of pods that are gone
		if now := s.pods.get(l.ref); now == nil || now.UID != old.pod {
			l.Close()
			delete(c.sessions, old)
		}
	}
	l := session.NewLasting(func(ctx context.Context) (*session.Session, error) { return s.dial(ctx, pod) })
	if c.ctx.Err() != nil {
		l.Close()
	}
	c.sessions[k] = &podSession{refOf(pod), l}
	return l
}

// dial starts the far end.
func (s *stand) dial(ctx context.Context, pod *corev1.Pod) (*session.Session, error) {
	return session.Over(ctx, func(in io.Reader, out io.Writer) (int, error) {
		argv, stdio := []string{topologies.WorkloadBinary, workload.SessionCommand}, lab.Stdio{In: in, Out: out}
		if s.byNode {
			return s.execByNode(s.connections.ctx, pod, argv, stdio)
		}
		return s.stream(s.connections.ctx, refOf(pod), pod.Spec.Containers[0].Name, argv, stdio)
	})
}
