// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// state is what has been done to a pod.
type state struct {
	workload zds.Workload
	ref      PodRef
	ns       *netns.NS // owned; nil if an earlier agent enrolled the pod and its namespace has not been found
	options  capture.Options
	addrs    string // with commas between; "": not known yet
	served   bool   // a proxy has acknowledged it
	leaving  bool   // it is being released
}

func (a *Agent) state(uid string) (state, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.pods[uid]
	return s, ok
}

func (a *Agent) setState(uid string, s state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods[uid] = s
	poke(a.moved)
}

// dropState forgets a pod and closes its namespace.
func (a *Agent) dropState(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods[uid].ns.Close()
	delete(a.pods, uid)
	delete(a.drifts, uid)
	poke(a.moved)
}

// view is the node's pods and the namespaces, as one snapshot has them.
type view struct {
	pods       map[string]*corev1.Pod // by uid
	namespaces map[string]*corev1.Namespace
}

// observe takes a snapshot and queues the pods that may have changed. Unchanged objects keep their pointers.
func (a *Agent) observe(o *source.Objects) {
	old, next := a.view.Load(), &view{pods: map[string]*corev1.Pod{}, namespaces: o.Namespaces}
	for _, p := range o.Pods {
		if p.Spec.NodeName == a.cfg.Node && p.UID != "" {
			next.pods[string(p.UID)] = p
		}
	}
	a.view.Store(next)
	for uid, p := range next.pods {
		was := old.pods[uid]
		switch {
		case was == nil:
			a.cfg.Metrics.Reconciled("add")
		case was != p || old.namespaces[p.Namespace] != next.namespaces[p.Namespace]:
			a.cfg.Metrics.Reconciled("update")
		default:
			continue
		}
		a.queue.add(uid)
	}
	for uid := range old.pods {
		if next.pods[uid] == nil {
			a.cfg.Metrics.Reconciled("delete")
			a.queue.add(uid)
		}
	}
}

// decide judges a pod by the namespaces that are known now.
func (a *Agent) decide(p *corev1.Pod, namespaces map[string]*corev1.Namespace) ambient.Verdict {
	var labels map[string]string
	if ns := namespaces[p.Namespace]; ns != nil {
		labels = ns.Labels
	}
	return ambient.Decide(ambient.Pod{
		Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations, HostNetwork: p.Spec.HostNetwork,
	}, labels, a.cfg.ExcludeNamespaces)
}

// options are the redirection that a pod asks for. Both families always: an address may come later, the hole must not.
func (a *Agent) options(p *corev1.Pod) capture.Options {
	o := capture.Options{IPv4: true, IPv6: true, DNS: a.cfg.DNSCapture, BypassInbound: p.Annotations[mesh.AnnotationBypass] == "true", Probes: a.cfg.ProbeSource}
	switch p.Annotations[mesh.AnnotationDNSCapture] {
	case "true":
		o.DNS = true
	case "false":
		o.DNS = false
	}
	return o
}

func refOf(p *corev1.Pod) PodRef {
	return PodRef{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}
}

func runtimeUID(p *corev1.Pod) string {
	if hash := p.Annotations[annotationStaticUID]; p.Annotations[corev1.MirrorPodAnnotationKey] != "" && hash != "" {
		return hash
	}
	return string(p.UID)
}

// annotationStaticUID is where kubelet writes a static pod's own uid.
const annotationStaticUID = "kubernetes.io/config.hash"

func workloadOf(p *corev1.Pod) zds.Workload {
	sa := p.Spec.ServiceAccountName
	if sa == "" {
		sa = mesh.DefaultServiceAccount
	}
	return zds.Workload{UID: string(p.UID), Name: p.Name, Namespace: p.Namespace, ServiceAccount: sa}
}

// terminated pods keep their object, and the address in it, but have no namespace any more.
func terminated(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func hasAddress(p *corev1.Pod) bool { return p.Status.PodIP != "" || len(p.Status.PodIPs) > 0 }

// locks hands out one lock per key.
type locks struct {
	mu sync.Mutex
	m  map[string]*lock
}

type lock struct {
	held  chan struct{} // holds a token while somebody has it
	users int           // guarded by locks.mu
}

// take waits for the key's lock. The caller calls release unless there is an error.
func (l *locks) take(ctx context.Context, key string) (release func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[string]*lock{}
	}
	k := l.m[key]
	if k == nil {
		k = &lock{held: make(chan struct{}, 1)}
		l.m[key] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.m, key)
		}
	}
	select {
	case k.held <- struct{}{}:
		return func() { <-k.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
