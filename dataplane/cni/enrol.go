// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// KernelRules changes the kernel's rules.
type KernelRules struct{}

// Apply implements Rules.
func (KernelRules) Apply(ctx context.Context, ns *netns.NS, p capture.Plan) (bool, error) {
	return capture.Apply(ctx, ns, p)
}

// Diff implements Rules.
func (KernelRules) Diff(ctx context.Context, ns *netns.NS, p capture.Plan) ([]string, error) {
	return capture.Diff(ctx, ns, p)
}

// Remove implements Rules.
func (KernelRules) Remove(ctx context.Context, ns *netns.NS) error { return capture.Remove(ctx, ns) }

// Installed implements Rules.
func (KernelRules) Installed(ctx context.Context, ns *netns.NS) (bool, error) {
	text, err := capture.Dump(ctx, ns)
	return text != "", err
}

// ErrHostNetwork says that a pod's namespace turned out to be the node's own.
var ErrHostNetwork = errors.New("the namespace is the node's own")

// reconcile makes so what is wanted of one pod.
func (a *Agent) reconcile(ctx context.Context, uid string) error {
	release, err := a.locks.take(ctx, uid)
	if err != nil {
		return err
	}
	defer release()
	v := a.view.Load()
	p := v.pods[uid]
	s, known := a.state(uid)
	switch {
	case p == nil || terminated(p):
		return a.forgetPod(ctx, uid, p, s, known)
	case !a.decide(p, v.namespaces).Enrol:
		return a.releasePod(ctx, p, s, known)
	case !known && !hasAddress(p):
		return nil // it has not started: the plugin will ask
	default:
		return a.enrol(ctx, p, nil, "")
	}
}

// enrol redirects a pod and hands it to the proxy. Its namespace is given, or known, or looked for; given stays the
// caller's; so are its addresses, "" if they are not. What is done already is not done again. The caller holds the pod's lock.
func (a *Agent) enrol(ctx context.Context, p *corev1.Pod, given *netns.NS, addrs string) error {
	uid, ref := string(p.UID), refOf(p)
	s, known := a.state(uid)
	ns, err := a.namespace(s, given, uid)
	if err != nil {
		return fmt.Errorf("enrol %s: %w", ref, err)
	}
	options := a.options(p)
	same := known && !s.leaving && s.ns != nil && s.ns.Same(ns)
	if !same || s.options != options {
		changed, err := a.cfg.Rules.Apply(ctx, ns, capture.NewPlan(options))
		if err != nil {
			if ns != s.ns {
				ns.Close()
			}
			return fmt.Errorf("enrol %s: redirect: %w", ref, err)
		}
		a.cfg.Log.Debug("redirected", "pod", ref, "netns", ns.Inode(), "changed", changed)
	}
	old := s.ns
	addrs = cmp.Or(addrs, addressesOf(p), s.addrs)
	s = state{workload: workloadOf(p), ref: ref, ns: ns, options: options, addrs: addrs, served: s.served && same}
	a.setState(uid, s)
	if old != ns {
		old.Close() // not before: a snapshot may be taken at any moment
	}
	return a.serve(ctx, s)
}

// serve hands a pod that is redirected to the proxy and says so on the pod.
func (a *Agent) serve(ctx context.Context, s state) error {
	if !s.served {
		if err := a.cfg.Proxies.Add(ctx, s.workload, s.ns); err != nil {
			err = fmt.Errorf("enrol %s: proxy: %w", s.ref, err)
			return errors.Join(err, a.cfg.Annotator.Set(s.ref, mesh.RedirectionPending))
		}
		s.served = true
		a.setState(s.ref.UID, s)
		a.cfg.Log.Info("enrolled", "pod", s.ref, "uid", s.ref.UID, "netns", s.ns.Inode())
	}
	if _, err := a.syncProbes(ctx, false); err != nil {
		return fmt.Errorf("enrol %s: %w", s.ref, err)
	}
	if err := a.cfg.Annotator.Set(s.ref, mesh.RedirectionEnabled); err != nil {
		return fmt.Errorf("enrol %s: %w", s.ref, err)
	}
	return nil
}

// namespace is a descriptor of the pod's namespace: the state's own, or one that the caller of it owns.
func (a *Agent) namespace(s state, given *netns.NS, uid string) (*netns.NS, error) {
	ns := s.ns
	var err error
	switch {
	case given != nil:
		ns, err = given.Dup()
	case ns == nil:
		ns, err = a.cfg.Netns.Find(a.runtimeUID(uid))
	}
	if err != nil {
		return nil, err
	}
	if ns != s.ns && a.cfg.HostNetns != nil && a.cfg.HostNetns.Same(ns) {
		ns.Close()
		return nil, ErrHostNetwork
	}
	return ns, nil
}

// runtimeUID is the uid by which kubelet and the runtime know a pod: the API server gives a static pod another one.
func (a *Agent) runtimeUID(uid string) string {
	if p := a.view.Load().pods[uid]; p != nil {
		return runtimeUID(p)
	}
	return uid
}

// releasePod takes a pod that lives on out of the mesh. Most pods were never in it.
func (a *Agent) releasePod(ctx context.Context, p *corev1.Pod, s state, known bool) error {
	uid, ref := string(p.UID), refOf(p)
	if !known && !a.recorded(ref) {
		return nil
	}
	if err := a.leave(ctx, uid); err != nil {
		return fmt.Errorf("release %s: %w", ref, err)
	}
	ns, err := a.namespace(s, nil, uid)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrHostNetwork):
	case err != nil:
		return fmt.Errorf("release %s: %w", ref, err)
	default:
		err := a.cfg.Rules.Remove(ctx, ns)
		if ns != s.ns {
			ns.Close()
		}
		if err != nil {
			return fmt.Errorf("release %s: redirect: %w", ref, err)
		}
	}
	return a.dropPod(ctx, ref, known, "released")
}

// forgetPod lets go of a pod that has ended; p is nil if its object is gone too.
func (a *Agent) forgetPod(ctx context.Context, uid string, p *corev1.Pod, s state, known bool) error {
	ref := s.ref
	switch {
	case known:
	case p != nil:
		ref = refOf(p)
	default:
		for r := range a.cfg.Annotator.Recorded() {
			if r.UID == uid {
				ref = r
			}
		}
	}
	if !known && !a.recorded(ref) {
		return nil
	}
	if err := a.leave(ctx, ref.UID); err != nil {
		return fmt.Errorf("release %s: %w", ref, err)
	}
	return a.dropPod(ctx, ref, known, "gone")
}

// dropPod is the end of both: the proxy, the annotation, our own memory.
func (a *Agent) dropPod(ctx context.Context, ref PodRef, known bool, why string) error {
	if err := a.cfg.Proxies.Del(ctx, ref.UID); err != nil {
		return fmt.Errorf("release %s: proxy: %w", ref, err)
	}
	if err := a.cfg.Annotator.Clear(ref); err != nil {
		return fmt.Errorf("release %s: %w", ref, err)
	}
	if known {
		a.dropState(ref.UID)
	}
	a.cfg.Log.Info(why, "pod", ref, "uid", ref.UID)
	return nil
}

func (a *Agent) recorded(ref PodRef) bool {
	_, ok := a.cfg.Annotator.Recorded()[ref]
	return ok
}

// takeOver makes the pods that an earlier agent enrolled our own, before any proxy connects: it would drop what the
// snapshot leaves out. Their rules are checked and repaired. What fails here is tried again by the workers.
func (a *Agent) takeOver(ctx context.Context) error {
	v := a.view.Load()
	for ref, value := range a.cfg.Annotator.Recorded() {
		p := v.pods[ref.UID]
		a.queue.add(ref.UID)
		if p == nil || terminated(p) || !a.decide(p, v.namespaces).Enrol {
			continue
		}
		if err := a.takeOverPod(ctx, p, value); err != nil {
			a.cfg.Log.Warn("pod not taken over yet", "pod", ref, "error", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return a.sweep(ctx)
}

// sweep removes redirection from pods that are not to have it and of which no annotation tells: an agent may have ended
// between the two, and the pod's label may have gone before the next began. A pod whose rules stay is called pending, so
// that the workers release it.
func (a *Agent) sweep(ctx context.Context) error {
	v := a.view.Load()
	for uid, p := range v.pods {
		ref := refOf(p)
		if p.Spec.HostNetwork || terminated(p) || a.recorded(ref) || a.decide(p, v.namespaces).Enrol {
			continue
		}
		found, err := a.sweepPod(ctx, uid)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case found && err != nil:
			err = errors.Join(err, a.cfg.Annotator.Set(ref, mesh.RedirectionPending))
			a.queue.add(uid)
			fallthrough
		case err != nil:
			a.cfg.Log.Warn("pod outside the mesh may be redirected", "pod", ref, "error", err)
		case found:
			a.cfg.Log.Warn("removed what an earlier agent left in a pod outside the mesh", "pod", ref)
		}
	}
	return nil
}

func (a *Agent) sweepPod(ctx context.Context, uid string) (found bool, err error) {
	ns, err := a.namespace(state{}, nil, uid)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrHostNetwork) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer ns.Close()
	if found, err = a.cfg.Rules.Installed(ctx, ns); err != nil || !found {
		return found, err
	}
	return true, a.cfg.Rules.Remove(ctx, ns)
}

func (a *Agent) takeOverPod(ctx context.Context, p *corev1.Pod, annotation string) error {
	uid := string(p.UID)
	// Named without a namespace, the proxy at least keeps it. What was served is served on, or will be by the snapshot: calling
	// it pending would turn its peers to plain text.
	s := state{workload: workloadOf(p), ref: refOf(p), addrs: addressesOf(p), served: annotation == mesh.RedirectionEnabled}
	a.setState(uid, s)
	ns, err := a.namespace(s, nil, uid)
	if err != nil {
		return err
	}
	options := a.options(p)
	plan := capture.NewPlan(options)
	diff, err := a.cfg.Rules.Diff(ctx, ns, plan)
	if err == nil && len(diff) > 0 {
		a.cfg.Log.Warn("redirection differs from what it should be, repairing it", "pod", s.ref, "differences", diff)
		_, err = a.cfg.Rules.Apply(ctx, ns, plan)
	}
	if err != nil {
		ns.Close()
		return err
	}
	s.ns, s.options = ns, options
	a.setState(uid, s)
	return nil
}
