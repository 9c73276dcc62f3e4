// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// decodeObjects turns what came over the socket into typed objects. All that is wrong is reported at once.
func decodeObjects(list order.Objects) ([]source.Object, error) {
	var objs []source.Object
	var errs []error
	for i, raw := range list {
		o, err := decodeObject(raw)
		if err != nil {
			errs = append(errs, fmt.Errorf("object %d: %w", i+1, err))
			continue
		}
		objs = append(objs, o)
	}
	return objs, errors.Join(errs...)
}

func decodeObject(raw json.RawMessage) (source.Object, error) {
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct{ Namespace, Name string }
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, err
	}
	name := strings.TrimPrefix(head.Metadata.Namespace+"/"+head.Metadata.Name, "/")
	kind, ok := source.KindOf(head.Kind)
	if !ok {
		return nil, fmt.Errorf("%s %s: this lab reads no objects of kind %q", head.Kind, name, head.Kind)
	}
	o := kind.New()
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("%s %s: %w", head.Kind, name, err)
	}
	for _, bad := range kind.Check(o) {
		return nil, fmt.Errorf("%s %s: %w", head.Kind, name, bad)
	}
	return o, nil
}

func keyOf(o source.Object) source.Key {
	return source.Key{Kind: o.GetObjectKind().GroupVersionKind().Kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// store writes objects to their files and to the snapshot.
func (s *site) store(objs ...source.Object) error {
	for _, o := range objs {
		if o.GetUID() == "" {
			o.SetUID(types.UID(newUID()))
		}
		if err := s.writeObject(s.dir.Objects(), o); err != nil {
			return err
		}
	}
	changes := map[source.Key]source.Object{}
	for _, o := range objs {
		changes[keyOf(o)] = o
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects = s.objects.With(changes)
	return nil
}

func (s *site) forget(keys ...source.Key) error {
	changes := map[source.Key]source.Object{}
	for _, k := range keys {
		changes[k] = nil
		if err := remove(s.objectFile(k)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects = s.objects.With(changes)
	return nil
}

// snapshot is all objects as they are wanted, without status.
func (s *site) snapshot() *source.Objects {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects
}

func fileName(k source.Key) string {
	parts := []string{strings.ToLower(k.Kind), k.Namespace, k.Name}
	if k.Namespace == "" {
		parts = []string{parts[0], k.Name}
	}
	return strings.Join(parts, ".") + ".yaml"
}

func (s *site) objectFile(k source.Key) string { return filepath.Join(s.dir.Objects(), fileName(k)) }

func (s *site) writeObject(dir string, o source.Object) error {
	data, err := json.Marshal(o) // JSON is YAML
	if err == nil {
		err = writeAtomic(filepath.Join(dir, fileName(keyOf(o))), append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", keyOf(o), err)
	}
	return nil
}

// remove is os.Remove of something that may be gone already.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

const kubelet = "kubelet" // the owner of the pods' status

// statusOf is a partial pod: its key and what kubelet says about it.
func (p *pod) statusOf() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: p.ref.Namespace, Name: p.ref.Name},
	}
	o.Status.Phase = corev1.PodPending
	for _, ip := range p.ips {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	if len(p.ips) > 0 {
		o.Status.PodIP = p.ips[0].String()
		o.Status.Phase = corev1.PodRunning
	}
	ready := corev1.ConditionFalse
	if p.ready {
		ready = corev1.ConditionTrue
	}
	o.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodReady, Status: ready, Message: p.problem},
		{Type: corev1.ContainersReady, Status: ready},
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	return o
}

func (s *site) writeStatus(p *pod) error {
	p.status.Lock()
	defer p.status.Unlock()
	if p.gone {
		return nil
	}
	return s.writeObject(s.dir.Status(kubelet), p.statusOf())
}

// removeStatus is the last that is done to a pod's status.
func (s *site) removeStatus(p *pod) error {
	p.status.Lock()
	defer p.status.Unlock()
	p.gone = true
	return remove(filepath.Join(s.dir.Status(kubelet), fileName(source.Key{Kind: "Pod", Namespace: p.ref.Namespace, Name: p.ref.Name})))
}

// apply stores objects and starts pods that are new. If one is bad, nothing is applied.
func (s *site) apply(list order.Objects) error {
	objs, err := decodeObjects(list)
	if err == nil {
		err = s.assignVIPs(objs)
	}
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	started, err := s.admit(objs)
	if err == nil {
		err = s.store(objs...)
	}
	if err != nil {
		s.dismiss(started)
		return fmt.Errorf("apply: %w", err)
	}
	for _, p := range started {
		s.work.Go(func() { s.startPod(p) })
	}
	s.control.changed()
	return nil
}

// admit registers the pods among objs that are new, and hands the others their new metadata.
func (s *site) admit(objs []source.Object) (fresh []*pod, err error) {
	for _, o := range objs {
		p, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		if have, err := s.pod(lab.PodRef{Namespace: p.Namespace, Name: p.Name}); err == nil {
			have.update(p)
			continue
		}
		made, err := s.newPod(p)
		if err != nil {
			return fresh, err
		}
		fresh = append(fresh, made)
	}
	return fresh, nil
}

// dismiss forgets pods that were admitted and will not be started.
func (s *site) dismiss(pods []*pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range pods {
		p.end()
		p.starting.Done()
		delete(s.pods, p.ref)
	}
}

// update takes over the metadata of a pod that runs: its process is not restarted.
func (p *pod) update(o *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o.UID = types.UID(p.uid)
	o.Spec = *p.obj.Spec.DeepCopy()
	p.obj = o
}

// remove deletes objects by their keys, and stops pods.
func (s *site) remove(ctx context.Context, list order.Objects) error {
	objs, err := decodeObjects(list)
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	var keys []source.Key
	var errs []error
	for _, o := range objs {
		if p, ok := o.(*corev1.Pod); ok {
			errs = append(errs, s.deletePod(ctx, lab.PodRef{Namespace: p.Namespace, Name: p.Name}))
		}
		keys = append(keys, keyOf(o))
	}
	errs = append(errs, s.forget(keys...))
	s.control.changed()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

func (s *site) deletePod(ctx context.Context, ref lab.PodRef) error {
	p, err := s.pod(ref)
	if err != nil {
		return nil // not there
	}
	err = s.stopPod(ctx, p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[ref] == p { // not another of that name, after a deletion by somebody else
		delete(s.pods, ref)
	}
	return err
}
