// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// pollEvery is between two looks at something that does not tell when it changes.
const pollEvery = 50 * time.Millisecond

// podWatch is a copy of all pods of the cluster that the API server keeps current, with the last warning about each. A pod
// is never changed once it is in it.
type podWatch struct {
	changes func(old, now *corev1.Pod) // one of them may be nil; called in order

	mu       sync.Mutex
	pods     map[lab.PodRef]*corev1.Pod // guarded by mu
	warnings map[types.UID]string       // guarded by mu
	wake     chan struct{}              // guarded by mu; closed at the next change
	running  sync.WaitGroup
	stop     context.CancelFunc
}

// watchPods returns once the copy is complete.
func watchPods(ctx context.Context, core kubernetes.Interface, changes func(old, now *corev1.Pod)) (*podWatch, error) {
	w := &podWatch{changes: changes, pods: map[lab.PodRef]*corev1.Pod{}, warnings: map[types.UID]string{}, wake: make(chan struct{})}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop = stop
	pods := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.CoreV1().Pods("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return core.CoreV1().Pods("").Watch(ctx, o)
		},
	}
	warnings := fields.OneTermEqualSelector("type", corev1.EventTypeWarning).String()
	events := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = warnings
			return core.CoreV1().Events("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = warnings
			return core.CoreV1().Events("").Watch(ctx, o)
		},
	}
	synced := w.follow(run, pods, &corev1.Pod{}, w.put)
	w.follow(run, events, &corev1.Event{}, w.warn)
	if !cache.WaitForCacheSync(ctx.Done(), synced) {
		w.close()
		return nil, fmt.Errorf("list pods: %w", context.Cause(ctx))
	}
	return w, nil
}

func (w *podWatch) follow(ctx context.Context, lw *cache.ListWatch, kind runtime.Object, put func(old, now any)) cache.InformerSynced {
	_, c := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: lw, ObjectType: kind, Handler: cache.ResourceEventHandlerFuncs{
		AddFunc:    func(now any) { put(nil, now) },
		UpdateFunc: put,
		DeleteFunc: func(old any) {
			if gone, ok := old.(cache.DeletedFinalStateUnknown); ok {
				old = gone.Obj
			}
			put(old, nil)
		},
	}})
	w.running.Go(func() { c.RunWithContext(ctx) })
	return c.HasSynced
}

func (w *podWatch) put(was, is any) {
	old, _ := was.(*corev1.Pod)
	now, _ := is.(*corev1.Pod)
	w.mu.Lock()
	switch {
	case now != nil:
		w.pods[refOf(now)] = now
	case old != nil:
		delete(w.pods, refOf(old))
		delete(w.warnings, old.UID)
	}
	w.signal()
	w.mu.Unlock()
	if w.changes != nil {
		w.changes(old, now)
	}
}

func (w *podWatch) warn(_, is any) {
	e, ok := is.(*corev1.Event)
	if !ok || e.InvolvedObject.Kind != "Pod" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.warnings[e.InvolvedObject.UID] = e.Message
	w.signal()
}

// signal wakes those that wait. w.mu is held.
func (w *podWatch) signal() {
	close(w.wake)
	w.wake = make(chan struct{})
}

func (w *podWatch) close() {
	w.stop()
	w.running.Wait()
}

func refOf(p *corev1.Pod) lab.PodRef { return lab.PodRef{Namespace: p.Namespace, Name: p.Name} }

// get is a pod; nil if there is none.
func (w *podWatch) get(ref lab.PodRef) *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pods[ref]
}

// list is every pod that match accepts.
func (w *podWatch) list(match func(*corev1.Pod) bool) []*corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*corev1.Pod
	for _, p := range w.pods {
		if match(p) {
			out = append(out, p)
		}
	}
	return out
}

// await waits until a condition about pods is true. why completes the error if ctx ends before.
func (w *podWatch) await(ctx context.Context, ok func() (why string, done bool)) error {
	for {
		w.mu.Lock()
		wake := w.wake
		w.mu.Unlock()
		why, done := ok()
		if done {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", why, context.Cause(ctx))
		}
	}
}

// problem is what keeps a pod from being ready, as far as the cluster says; "" if nothing does.
func (w *podWatch) problem(p *corev1.Pod) string {
	if p == nil || podReady(p) {
		return ""
	}
	w.mu.Lock()
	warning := w.warnings[p.UID]
	w.mu.Unlock()
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if t := cmp.Or(c.State.Terminated, c.LastTerminationState.Terminated); t != nil && !c.Ready {
			return strings.TrimSpace(fmt.Sprintf("container %s ended: exit code %d %s", c.Name, t.ExitCode, t.Message))
		}
		if s := c.State.Waiting; s != nil && s.Message != "" {
			return fmt.Sprintf("container %s: %s: %s", c.Name, s.Reason, s.Message)
		}
	}
	return cmp.Or(warning, p.Status.Message, unseen(p))
}

// unseen is what a pod waits for of which no kubelet has said anything; "" of any other.
func unseen(p *corev1.Pod) string {
	switch {
	case p.Status.StartTime != nil:
		return ""
	case p.Spec.NodeName != "":
		return fmt.Sprintf("kubelet on node %s says nothing of it: does it run, and reach the API server?", p.Spec.NodeName)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c.Message
		}
	}
	return ""
}

func podReady(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// newer reports whether one version of an object is at least as new as another.
func newer(have, want string) bool {
	h, err := strconv.ParseUint(have, 10, 64)
	w, err2 := strconv.ParseUint(want, 10, 64)
	return err != nil || err2 != nil || h >= w
}

// Pods implements lab.Driver.
func (d *Driver) Pods(context.Context) ([]lab.PodInfo, error) {
	s, err := d.standing()
	if err != nil {
		return nil, err
	}
	var out []lab.PodInfo
	for _, p := range s.pods.list(func(*corev1.Pod) bool { return true }) {
		out = append(out, s.info(p))
	}
	lab.SortPods(out)
	return out, nil
}

// info is a pod as the lab sees it.
func (s *stand) info(p *corev1.Pod) lab.PodInfo {
	i := lab.PodInfo{
		PodRef: refOf(p), UID: string(p.UID), Node: s.nodes.topology(p.Spec.NodeName), ServiceAccount: p.Spec.ServiceAccountName,
		IPs: []netip.Addr{}, Ready: podReady(p), Enrolled: p.Annotations[mesh.AnnotationRedirection] == mesh.RedirectionEnabled,
		Problem: s.pods.problem(p), Labels: maps.Clone(p.Labels),
	}
	if name, ok := s.alias(p); ok {
		i.Name = name
	}
	delete(i.Labels, LabelLab)
	for _, ip := range p.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			i.IPs = append(i.IPs, addr)
		}
	}
	return i
}

// alias is the topology's name of the pod that runs a daemon now: the cluster gives it a name that changes with each pod.
func (s *stand) alias(p *corev1.Pod) (string, bool) {
	k, ok := s.fleet.keyOf(p)
	if now := s.fleet.pod(k); !ok || now == nil || now.UID != p.UID {
		return "", false
	}
	switch k.daemon {
	case lab.DaemonZtunnel:
		return "ztunnel-" + k.node, true
	case lab.DaemonControl:
		return "istiod", true
	}
	return "", false
}

// pod finds a pod by its own name, or by that which the topology has for it; nil if there is none.
func (s *stand) pod(ref lab.PodRef) *corev1.Pod {
	if p := s.pods.get(ref); p != nil || ref.Namespace != systemNamespace {
		return p
	}
	if ref.Name == "istiod" {
		return s.fleet.pod(key{"", lab.DaemonControl})
	}
	node, ok := strings.CutPrefix(ref.Name, "ztunnel-")
	if !ok {
		return nil
	}
	return s.fleet.pod(key{node, lab.DaemonZtunnel})
}
