// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// bringUp builds the whole lab. Everything that does not wait for something else happens at once.
func (h *holder) bringUp(ctx context.Context, c *client, u *order.Up) error {
	s, err := h.newSite(u)
	if err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if err := s.boot(ctx, c, u.Objects); err != nil {
		return fmt.Errorf("bring up %s: %w", u.Spec.Name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.up = true
	return nil
}

func (s *site) boot(ctx context.Context, c *client, list order.Objects) error {
	objs, err := decodeObjects(list)
	if err != nil {
		return err
	}
	if err := s.prepareDirs(); err != nil {
		return err
	}
	if s.spec.Debug.TLSKeys {
		c.progress("warning: the secrets of the mesh's TLS connections are logged (debug.tlsKeys): who has them reads the traffic")
	}
	c.progress("starting %d nodes and %d external hosts", len(s.cluster.Nodes), len(s.spec.External))
	if err := s.startMachines(ctx); err != nil {
		return err
	}
	pods, err := s.admit(objs)
	if err == nil {
		err = s.store(append(objs, s.dnsSlices()...)...)
	}
	if err != nil {
		s.dismiss(pods)
		return err
	}
	s.work.Go(func() { s.runController(s.run) })
	s.work.Go(func() { s.renewTokens(s.run) })
	s.control.changed()
	c.progress("starting %d pods", len(pods))
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	stop := s.reportWaiting(ctx, c)
	err = s.startPods(ctx, pods)
	stop()
	if err != nil {
		return err
	}
	return s.control.flush(ctx)
}

// bootTime is long enough for a large lab on a slow machine; what takes longer will not come up.
const bootTime = 2 * time.Minute

// reportWaiting tells the client now and then what is not ready yet, until stop is called.
func (s *site) reportWaiting(ctx context.Context, c *client) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				c.progress("waiting for %s", s.waiting())
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// waiting names a few of the pods that are not ready, and why.
func (s *site) waiting() string {
	const few = 3
	var names []string
	more := 0
	for _, p := range s.podInfos() {
		switch {
		case p.Ready:
		case len(names) == few:
			more++
		case p.Problem != "":
			names = append(names, p.String()+" ("+p.Problem+")")
		default:
			names = append(names, p.String())
		}
	}
	if len(names) == 0 {
		return "the node agents"
	}
	if more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

func (s *site) prepareDirs() error {
	dirs := []string{s.dir.Status(kubelet), s.dir.Status(lab.DaemonControl)}
	for _, n := range s.cluster.Nodes {
		dirs = append(dirs, s.dir.Status(lab.DaemonCNIAgent+"."+n.Name))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make lab directory: %w", err)
		}
	}
	if err := writeAtomic(s.dir.JWKS(), s.issuer.JWKS()); err != nil {
		return fmt.Errorf("write token keys: %w", err)
	}
	spec, err := s.spec.Document()
	if err != nil {
		return err
	}
	return writeAtomic(s.dir.Topology(), spec)
}

// startMachines starts nodes, external hosts, and the network between them.
func (s *site) startMachines(ctx context.Context) error {
	if err := s.newUnderlay(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	var socks dnsSockets
	nodes := map[string]*node{}
	for i := range s.cluster.Nodes {
		g.Go(func() error {
			n, err := s.startNode(ctx, i)
			if err != nil {
				return err
			}
			served, err := s.openDNS(ctx, n)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			nodes[n.name] = n
			socks.tcp, socks.udp = append(socks.tcp, served.tcp...), append(socks.udp, served.udp...)
			return nil
		})
	}
	for i := range s.spec.External {
		g.Go(func() error { return s.startExternal(ctx, i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.mu.Lock()
	s.nodes = nodes
	s.mu.Unlock()
	s.work.Go(func() { s.serveDNS(s.run, socks) })
	return nil
}

// newPod registers a pod, which gets its uid here. Its starting is held until whoever asked for it has started it, so that
// nobody who finds it takes it away before.
func (s *site) newPod(obj *corev1.Pod) (*pod, error) {
	ref := lab.PodRef{Namespace: obj.Namespace, Name: obj.Name}
	if obj.Spec.NodeName == "" {
		obj.Spec.NodeName = s.cluster.Nodes[0].Name
	}
	n, err := s.node(obj.Spec.NodeName)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", ref, err)
	}
	if obj.Spec.ServiceAccountName == "" {
		obj.Spec.ServiceAccountName = "default"
	}
	uid := newUID()
	obj.UID = types.UID(uid)
	life, cancel := context.WithCancel(s.run)
	p := &pod{ref: ref, uid: uid, role: roleOf(obj), node: n, obj: obj, lifetime: life, end: cancel}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[ref] != nil {
		return nil, fmt.Errorf("pod %s is there already", ref)
	}
	p.starting.Add(1)
	s.pods[ref] = p
	return p, nil
}

// newUID is a random UUID (RFC 9562, version 4).
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// startPods starts the nodes' agents and all pods, and waits until everything is ready, but for pods that are deleted.
func (s *site) startPods(ctx context.Context, pods []*pod) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range s.nodeList() {
		g.Go(func() error { return s.startAgent(ctx, n) })
	}
	for _, p := range pods {
		g.Go(func() error {
			defer p.starting.Done()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stop := context.AfterFunc(p.lifetime, cancel)
			defer stop()
			if err := s.bringUp(ctx, p); err != nil && p.lifetime.Err() == nil {
				return err
			}
			return nil
		})
	}
	return g.Wait()
}

// startPod is bringUp of a pod that nobody waits for: what goes wrong is the pod's problem.
func (s *site) startPod(p *pod) {
	defer p.starting.Done()
	if err := s.bringUp(p.lifetime, p); err != nil && p.lifetime.Err() == nil {
		s.log.Error("pod does not run", "pod", p.ref, "err", err)
		p.fail(err)
		if err := s.writeStatus(p); err != nil {
			s.log.Error("status not written", "pod", p.ref, "err", err)
		}
	}
}

func (s *site) bringUp(ctx context.Context, p *pod) error {
	if err := s.makePod(ctx, p); err != nil {
		return err
	}
	meshed := s.meshed(p)
	if meshed {
		p.node.awaitMesh(ctx) // its ADD would only be refused until then
	}
	if err := s.connectPod(ctx, p); err != nil {
		return err
	}
	if p.role == roleZtunnel {
		s.awaitControl(ctx)
	}
	if err := s.runPod(ctx, p); err != nil || !meshed {
		return err
	}
	return s.awaitEnrolled(ctx, p)
}
