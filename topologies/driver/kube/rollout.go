// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/e2e-framework/klient/k8s"
)

// undoWithin bounds what puts a failed replacement back.
const undoWithin = 10 * time.Second

// who says who runs a daemon on a node: "" its one DaemonSet, runOwn that of the node, runStopped nobody.
func (f *fleet) who(ctx context.Context, k key, p program) (string, error) {
	var n corev1.Node
	if err := f.s.api.res.Get(ctx, f.s.nodes.cluster(k.node), "", &n); err != nil {
		return "", err
	}
	return n.Labels[p.switchLabel()], nil
}

// storeSet makes a DaemonSet, or makes an existing one like it.
func (f *fleet) storeSet(ctx context.Context, set *appsv1.DaemonSet) error {
	u, err := document(set)
	if err != nil {
		return err
	}
	return f.s.store(ctx, u, false)
}

// replace puts a new pod in the place of a node's.
func (f *fleet) replace(ctx context.Context, k key, p program, env []string) error {
	who, err := f.who(ctx, k, p)
	if err != nil {
		return err
	}
	old := f.pod(k)
	switch {
	case who == runStopped || old == nil:
		return errors.New("it does not run: start it")
	case len(env) == 0 && who == "":
		return f.roll(ctx, k, p.name, old)
	case who == "":
		return f.takeOver(ctx, k, p, old, env)
	}
	set := f.own(k, env)
	set.Spec.Template.Annotations = map[string]string{annotationRound: f.next()}
	if err := f.storeSet(ctx, set); err != nil {
		return err
	}
	return f.awaitReplaced(ctx, k, old)
}

// next is the name of a new round.
func (f *fleet) next() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.round++
	return strconv.Itoa(f.round)
}

// takeOver starts a DaemonSet for one node beside the one for all, which then leaves the node.
func (f *fleet) takeOver(ctx context.Context, k key, p program, old *corev1.Pod, env []string) error {
	if err := f.storeSet(ctx, f.own(k, env)); err != nil {
		return err
	}
	err := f.s.pods.await(ctx, func() (string, bool) {
		now := f.pod(k)
		return f.unready(k, old), now != nil && now.UID != old.UID && podReady(now)
	})
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
		defer cancel()
		return errors.Join(err, f.dropOwn(undo, k))
	}
	if err := f.turn(ctx, k, p, runOwn); err != nil {
		return err
	}
	return f.awaitReplaced(ctx, k, old)
}

// unready says what a second pod lacks.
func (f *fleet) unready(k key, old *corev1.Pod) string {
	for _, p := range f.pods(k) {
		if p.UID != old.UID && p.DeletionTimestamp == nil {
			return fmt.Sprintf("the new pod %s is not ready: %s", p.Name, f.s.pods.problem(p))
		}
	}
	return "no new pod was made"
}

// awaitReplaced waits until another pod is ready in the place of old, and old is gone.
func (f *fleet) awaitReplaced(ctx context.Context, k key, old *corev1.Pod) error {
	return f.s.pods.await(ctx, func() (string, bool) {
		now, there := f.pod(k), f.s.pods.get(refOf(old))
		switch {
		case now == nil || now.UID == old.UID || !podReady(now):
			return f.unready(k, old), false
		case there != nil && there.UID == old.UID:
			return fmt.Sprintf("pod %s does not end", old.Name), false
		}
		return "", true
	})
}

// roll joins the rolling update that is under way, if it has not come to this node, or begins one.
func (f *fleet) roll(ctx context.Context, k key, set string, old *corev1.Pod) error {
	f.mu.Lock()
	round := old.Annotations[annotationRound]
	begun, _ := strconv.Atoi(round)
	if begun >= f.current {
		f.round++
		if err := f.annotate(ctx, set, strconv.Itoa(f.round)); err != nil {
			f.mu.Unlock()
			return err
		}
		f.current = f.round
	}
	f.mu.Unlock()
	err := f.awaitReplaced(ctx, k, old)
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = begun
	return errors.Join(err, f.annotate(undo, set, round))
}

// annotate names the round of a DaemonSet's template; "" is the first.
func (f *fleet) annotate(ctx context.Context, set, round string) error {
	value := &round
	if round == "" {
		value = nil
	}
	data, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{
		"metadata": map[string]any{"annotations": map[string]*string{annotationRound: value}},
	}}})
	if err != nil {
		return err
	}
	o := &appsv1.DaemonSet{}
	o.Namespace, o.Name = systemNamespace, set
	return f.s.api.res.Patch(ctx, o, k8s.Patch{PatchType: types.MergePatchType, Data: data})
}

// scale sets the number of control planes, and their variables if there are to be any.
func (f *fleet) scale(ctx context.Context, replicas int32, env []string) error {
	d := f.deploy.DeepCopy()
	d.Spec.Replicas = &replicas
	d.Spec.Template.Spec.Containers[0].Env = override(d.Spec.Template.Spec.Containers[0].Env, env)
	u, err := document(d)
	if err != nil {
		return err
	}
	return f.s.store(ctx, u, false)
}
