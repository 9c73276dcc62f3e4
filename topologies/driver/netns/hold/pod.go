// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

const podNamespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC

// podGrace is Kubernetes' terminationGracePeriodSeconds for a pod that does not say.
const podGrace = 30 * time.Second

// pod is what kubelet would keep about a pod. Its fields but the guarded ones are set before it is shared.
type pod struct {
	ref  lab.PodRef
	uid  string
	role role
	node *node

	lifetime context.Context // ends with the pod; bounds what works on its behalf
	end      context.CancelFunc
	starting sync.WaitGroup // held while the pod is being started
	env      []string       // overrides the environment of its first run; set before it is started
	place    string         // the name of the pod that it replaces, or of that one's; "" if it is none's; set before it is started
	standby  atomic.Bool    // a daemon that is to replace another, and does not yet

	replacing sync.Mutex // held while another pod takes its place

	status sync.Mutex // held while the status file is written, so that what was true last is what stands there
	gone   bool       // guarded by status; the file is another pod's of that name, if there is one

	mu      sync.Mutex
	obj     *corev1.Pod // guarded by mu; never written to
	init    *pause.Handle
	ns      *netns.NS
	main    *task
	ips     []netip.Addr
	ready   bool
	problem string
	added   bool // CNI ADD was tried, so that DEL is due
}

// object is the pod as it is wanted now.
func (p *pod) object() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.obj
}

func (p *pod) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problem, p.ready = err.Error(), false
}

// handle is the pod's init, nil before it runs.
func (p *pod) handle() *pause.Handle {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.init
}

// task is the pod's main process, nil before its network is there.
func (p *pod) task() *task {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.main
}

// makePod gives a pod its namespaces and its root, but neither a network nor a process.
func (s *site) makePod(ctx context.Context, p *pod) error {
	if err := os.MkdirAll(s.dir.Pod(p.uid, "root"), 0o700); err != nil {
		return fmt.Errorf("start pod %s: %w", p.ref, err)
	}
	init, err := s.launch(p.ref.String(), podNamespaces)
	if err != nil {
		return err
	}
	ns, err := netns.Open(nsPath(init))
	if err != nil {
		init.Kill()
		return fmt.Errorf("start pod %s: %w", p.ref, err)
	}
	p.mu.Lock()
	p.init, p.ns = init, ns
	p.mu.Unlock()
	setup, err := s.podSetup(p)
	if err != nil {
		return fmt.Errorf("start pod %s: %w", p.ref, err)
	}
	if err := init.SetUp(ctx, setup); err != nil {
		return fmt.Errorf("start pod %s: %w", p.ref, err)
	}
	// The agent of the node finds the namespace of a running pod here.
	if err := writeAtomic(s.dir.Node(p.node.name, "netns", p.uid), []byte(nsPath(init)+"\n")); err != nil {
		return fmt.Errorf("start pod %s: %w", p.ref, err)
	}
	return nil
}

// connectPod runs CNI ADD until it succeeds: the agent of a mesh pod's node may not be there yet.
func (s *site) connectPod(ctx context.Context, p *pod) error {
	p.mu.Lock()
	p.added = true
	p.mu.Unlock()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		ips, err := s.cniAdd(ctx, p)
		if err == nil {
			return s.connected(ctx, p, ips)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("connect pod %s: %w", p.ref, errors.Join(ctx.Err(), err))
		}
		p.fail(err)
		s.log.Warn("CNI ADD refused, trying again", "pod", p.ref, "err", err)
		if err := s.cniDel(ctx, p); err != nil {
			s.log.Warn("CNI DEL failed", "pod", p.ref, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (s *site) connected(ctx context.Context, p *pod, ips []netip.Addr) error {
	p.mu.Lock()
	p.ips, p.problem = ips, ""
	init := p.init
	p.mu.Unlock()
	if err := init.Write(ctx, s.hostsFile(p.ref.Name, ips)); err != nil {
		return fmt.Errorf("connect pod %s: %w", p.ref, err)
	}
	if err := s.writeStatus(p); err != nil {
		return err
	}
	s.control.changed()
	return s.awaitPolicies(ctx, p)
}

// runPod starts a pod's main process and waits until it is ready.
func (s *site) runPod(ctx context.Context, p *pod) error {
	t, err := s.podTask(p)
	if err != nil {
		return fmt.Errorf("start pod %s: %w", p.ref, err)
	}
	p.mu.Lock()
	p.main = t
	p.mu.Unlock()
	proc, err := t.Start(ctx, p.env...)
	if err != nil {
		return err
	}
	if err := s.awaitReady(ctx, p, t); err != nil {
		return fmt.Errorf("start pod %s: %w", p.ref, err)
	}
	if p.role == roleZtunnel {
		p.node.ztunnelUp.reach()
	}
	if err := s.setReady(p, func() bool { return t.running() == proc }, true, ""); err != nil {
		return err
	}
	if p.role == roleControl {
		s.controlUp.reach()
	}
	s.work.Go(func() { s.watchEnd(p, t, proc) })
	return nil
}

// watchEnd notes when a run of the pod's process ends; nobody restarts it by itself.
func (s *site) watchEnd(p *pod, t *task, proc *pause.Process) {
	select {
	case <-proc.Done():
	case <-p.lifetime.Done():
		return
	}
	s.noteReady(p, func() bool { return t.last() == proc }, false, t.ended())
}

// restarted notes that the pod's process runs again, and when it becomes ready.
func (s *site) restarted(p *pod, t *task, proc *pause.Process) {
	s.noteReady(p, func() bool { return t.last() == proc }, false, "started again")
	s.work.Go(func() {
		if s.awaitReady(p.lifetime, p, t) != nil {
			return // it ended, and watchEnd says so
		}
		s.noteReady(p, func() bool { return t.running() == proc }, true, "")
	})
	s.work.Go(func() { s.watchEnd(p, t, proc) })
}

func (s *site) noteReady(p *pod, still func() bool, ready bool, problem string) {
	if err := s.setReady(p, still, ready, problem); err != nil {
		s.log.Error("status not written", "pod", p.ref, "err", err)
	}
}

// setReady does nothing if what made the caller say so is no longer the case: runs of a pod's process have watchers of their
// own, and the last word is the last run's.
func (s *site) setReady(p *pod, still func() bool, ready bool, problem string) error {
	p.mu.Lock()
	if !still() {
		p.mu.Unlock()
		return nil
	}
	changed := p.ready != ready
	p.ready, p.problem = ready, problem
	p.mu.Unlock()
	if !changed {
		return nil
	}
	if err := s.writeStatus(p); err != nil {
		return err
	}
	s.control.changed()
	return nil
}

// unplugTime bounds what a pod's end takes beside its grace period. A plugin has a few system calls to make.
const unplugTime = 30 * time.Second

// stopPod stops a pod's process, takes its network away and ends its namespaces, in Kubernetes' order. Once begun it goes
// on without whoever asked for it: half a pod would keep its address.
func (s *site) stopPod(ctx context.Context, p *pod) error {
	p.end()
	ctx = context.WithoutCancel(ctx)
	p.starting.Wait()
	_ = s.setReady(p, func() bool { return true }, false, "being deleted")
	var errs []error
	if t := p.task(); t != nil {
		errs = append(errs, within(ctx, t.grace+unplugTime, t.Stop))
	}
	p.mu.Lock()
	init, ns, added := p.init, p.ns, p.added
	p.mu.Unlock()
	errs = append(errs, s.endImpairedPod(p))
	if added {
		p.mu.Lock()
		p.ips = nil // from here on they may become another pod's
		p.mu.Unlock()
		errs = append(errs, within(ctx, unplugTime, func(ctx context.Context) error { return s.cniDel(ctx, p) }))
	}
	if init != nil {
		init.Kill()
	}
	if ns != nil {
		errs = append(errs, ns.Close())
	}
	errs = append(errs, os.RemoveAll(s.dir.Pod(p.uid)), remove(s.dir.Node(p.node.name, "netns", p.uid)), s.removeStatus(p))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.ref, err)
	}
	return nil
}

func within(ctx context.Context, d time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return fn(ctx)
}
