// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/session"
)

// Connections are a process's ways to one cluster: a client of its API server, and sessions that run commands in pods. Labs that follow
// one another on the cluster may share them; the first one's Options say where the cluster is. Make them with NewConnections; whoever
// did closes them, after the last lab.
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

// podSession runs commands in a pod.
type podSession struct {
	ref     lab.PodRef
	running atomic.Int64
	lasting *session.Lasting
}

func (p *podSession) run(ctx context.Context, argv []string, stdio lab.Stdio) (int, error) {
	p.running.Add(1)
	defer p.running.Add(-1)
	return p.lasting.Run(ctx, argv, stdio.In, stdio.Out, stdio.Err)
}

// NewConnections has none open yet.
func NewConnections() *Connections {
	c := &Connections{sessions: map[sessionKey]*podSession{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Close ends the sessions, and commands that run in pods. Later commands are not started.
func (c *Connections) Close() {
	c.stop()
	c.drop(func(*podSession) bool { return true })
}

// endCommands ends what a lab has left running in pods that outlast it.
func (c *Connections) endCommands() {
	c.drop(func(p *podSession) bool { return p.running.Load() > 0 })
}

// forget ends sessions with pods that are gone.
func (c *Connections) forget(pods *podWatch) {
	c.mu.Lock()
	gone := map[*podSession]bool{}
	for k, p := range c.sessions {
		now := pods.get(p.ref)
		gone[p] = now == nil || now.UID != k.pod
	}
	c.mu.Unlock()
	c.drop(func(p *podSession) bool { return gone[p] })
}

func (c *Connections) drop(which func(*podSession) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, p := range c.sessions {
		if which(p) {
			p.lasting.Close()
			delete(c.sessions, k)
		}
	}
}

// client is the way to the API server, by Options.Direct if it came to answer there since the last lab.
func (c *Connections) client(ctx context.Context, o Options) (*client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api != nil && (o.Direct == "" || strings.HasSuffix(c.api.config.Host, "//"+o.Direct)) {
		return c.api, nil
	}
	config, err := o.restConfig(ctx)
	if err != nil || c.api != nil && config.Host == c.api.config.Host {
		return c.api, err
	}
	api, err := connect(config)
	if err == nil {
		c.api = api
	}
	return api, err
}

// farEnd runs a command in a pod.
type farEnd func(ctx context.Context, argv []string, stdio lab.Stdio) (int, error)

// session is that with a pod. There is one per pod, kept open: to start a command through the API server, kubelet and the container
// runtime takes a quarter of a second, and scenarios start thousands.
func (c *Connections) session(k sessionKey, ref lab.PodRef, start farEnd) *podSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.sessions[k]; p != nil {
		return p
	}
	p := &podSession{ref: ref, lasting: session.NewLasting(func(ctx context.Context) (*session.Session, error) {
		return session.Over(ctx, func(in io.Reader, out io.Writer) (int, error) {
			return start(c.ctx, []string{topologies.WorkloadBinary, workload.SessionCommand}, lab.Stdio{In: in, Out: out})
		})
	})}
	if c.ctx.Err() != nil {
		p.lasting.Close()
		return p
	}
	c.sessions[k] = p
	return p
}

// session is that with a pod, over its node if the lab wants it so. It holds nothing of the lab, which it may outlast.
func (s *stand) session(pod *corev1.Pod) *podSession {
	api, host := s.api, s.host
	start := func(ctx context.Context, argv []string, stdio lab.Stdio) (int, error) {
		return api.stream(ctx, refOf(pod), pod.Spec.Containers[0].Name, argv, stdio)
	}
	if s.byNode {
		start = func(ctx context.Context, argv []string, stdio lab.Stdio) (int, error) {
			return execByNode(ctx, host, pod, argv, stdio)
		}
	}
	return s.connections.session(sessionKey{pod.UID, s.byNode}, refOf(pod), start)
}
