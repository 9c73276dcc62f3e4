// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// PodWriter writes annotations of one incarnation of a pod to where Objects are from; "" takes one away. It returns the version of
// the object that has them, "" if there is no such pod any more.
type PodWriter interface {
	Annotate(ctx context.Context, namespace, name, uid string, annotations map[string]string) (version string, err error)
}

const (
	annotators   = 2               // pods written at the same time
	flushTimeout = 3 * time.Second // for what is not written yet when the agent ends
)

// Annotations records on pods' own objects. What is written is remembered until the objects show it and tried until it has
// worked, so that an API server that is away holds up no pod. Make it with NewAnnotations, and let it Run.
type Annotations struct {
	node    string
	objects source.Source
	pods    PodWriter
	log     *slog.Logger
	queue   *queue

	mu     sync.Mutex      // guards what follows
	wishes map[string]wish // by uid
	failed bool            // the last write failed
}

// wish is what a pod's annotations should be, as long as its object does not show it.
type wish struct {
	record
	version string // of the object that has it; "": not written yet
}

var _ Annotator = (*Annotations)(nil)

// NewAnnotations does no I/O. Objects are those of the agent.
func NewAnnotations(node string, objects source.Source, pods PodWriter, log *slog.Logger) *Annotations {
	return &Annotations{node: node, objects: objects, pods: pods, log: log, wishes: map[string]wish{},
		queue: newQueue(100*time.Millisecond, 5*time.Second)}
}

// Set implements Annotator.
func (a *Annotations) Set(p PodRef, value string) error {
	a.change(p, func(r record) record { r.value = value; return r })
	return nil
}

// Note implements Annotator.
func (a *Annotations) Note(p PodRef, drift string) error {
	a.change(p, func(r record) record {
		if r.value != "" {
			r.drift = drift
		}
		return r
	})
	return nil
}

// Clear implements Annotator.
func (a *Annotations) Clear(p PodRef) error {
	a.change(p, func(r record) record { return record{ref: r.ref} })
	return nil
}

func (a *Annotations) change(p PodRef, edit func(record) record) {
	o := a.objects.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	pod := o.Pods[p.String()]
	if pod == nil || string(pod.UID) != p.UID {
		delete(a.wishes, p.UID)
		return
	}
	now := a.recorded(pod)
	next := edit(now)
	if next == now {
		return
	}
	a.wishes[p.UID] = wish{record: next}
	a.queue.add(p.UID)
}

// recorded is what a pod has or will have. It is called with mu held.
func (a *Annotations) recorded(p *corev1.Pod) record {
	uid := string(p.UID)
	w, ok := a.wishes[uid]
	if ok && (w.version == "" || older(p.ResourceVersion, w.version)) {
		return w.record
	}
	delete(a.wishes, uid)
	return record{refOf(p), p.Annotations[mesh.AnnotationRedirection], p.Annotations[AnnotationDrift]}
}

// older compares versions of one object; those that are no numbers are only the same or not.
func older(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	if cmp.Or(errX, errY) != nil {
		return a != b
	}
	return x < y
}

// Recorded implements Annotator.
func (a *Annotations) Recorded() map[PodRef]string {
	o := a.objects.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[PodRef]string{}
	for _, p := range o.Pods {
		if p.Spec.NodeName != a.node {
			continue
		}
		if r := a.recorded(p); r.value != "" {
			out[r.ref] = r.value
		}
	}
	return out
}

// Run writes until ctx ends, and for a moment longer what is not written by then.
func (a *Annotations) Run(ctx context.Context) error {
	var g sync.WaitGroup
	for range annotators {
		g.Go(func() {
			for {
				uid, ok := a.queue.get(ctx)
				if !ok {
					return
				}
				a.write(ctx, uid)
				a.queue.done(uid)
			}
		})
	}
	g.Wait()
	a.queue.close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	for _, uid := range a.unwritten() {
		a.write(ctx, uid)
	}
	return nil
}

func (a *Annotations) unwritten() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var uids []string
	for uid, w := range a.wishes {
		if w.version == "" {
			uids = append(uids, uid)
		}
	}
	return uids
}

func (a *Annotations) write(ctx context.Context, uid string) {
	a.mu.Lock()
	w, ok := a.wishes[uid]
	a.mu.Unlock()
	if !ok || w.version != "" {
		return
	}
	version, err := a.pods.Annotate(ctx, w.ref.Namespace, w.ref.Name, uid, map[string]string{
		mesh.AnnotationRedirection: w.value, AnnotationDrift: w.drift,
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if !a.failed && ctx.Err() == nil {
			a.log.Warn("annotation cannot be written, trying again", "pod", w.ref, "error", err)
		}
		a.failed = a.failed || ctx.Err() == nil
		a.queue.retry(uid)
		return
	}
	if a.failed {
		a.log.Info("annotations are written again", "pod", w.ref)
	}
	a.failed = false
	a.queue.forget(uid)
	switch now, ok := a.wishes[uid]; {
	case !ok || now != w: // something else is wished by now, and queued
	case version == "":
		delete(a.wishes, uid)
	default:
		w.version = version
		a.wishes[uid] = w
	}
}
