// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/kindconfigs/install"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Values of a daemon's label on a node; without the label the daemon's one DaemonSet runs it there.
const (
	runStopped = "stopped"
	runOwn     = "own" // a DaemonSet for that node alone does
)

// labelOwn is on the pods of a DaemonSet for one node.
const labelOwn = prefixOwn + "own"

// annotationRound on a template makes a rolling update of what had another value.
const annotationRound = prefixOwn + "round"

// program is one of the mesh's daemons, as it is installed.
type program struct {
	name     string // of the DaemonSet or Deployment
	selector [2]string
	ready    uint16
	path     string
	perNode  bool
}

var programs = map[string]program{
	lab.DaemonZtunnel:  {install.ZtunnelName, [2]string{"app", install.ZtunnelName}, 15021, "/healthz/ready", true},
	lab.DaemonCNIAgent: {install.AgentName, [2]string{"k8s-app", install.AgentName}, 8000, "/readyz", true},
	lab.DaemonControl:  {install.ControlName, [2]string{"app", install.ControlName}, 8080, "/ready", false},
}

// switchLabel is the node's label that says who runs a daemon there.
func (p program) switchLabel() string { return prefixOwn + p.name }

// key is a daemon on a node; of the control plane the node is "".
type key struct{ node, daemon string }

func (k key) String() string { return strings.TrimSpace(k.daemon + " " + k.node) }

// fleet is the mesh's daemons.
type fleet struct {
	s *stand

	mu      sync.Mutex
	sets    map[string]*appsv1.DaemonSet // set by load; by daemon, as they are installed
	deploy  *appsv1.Deployment           // the same, of the control plane
	round   int                          // guarded by mu; the last that was named
	current int                          // guarded by mu; that of the installed template
	busy    map[key]*sync.Mutex          // guarded by mu; what changes a daemon holds its own
	ended   map[key]ended                // guarded by mu; by signals of ours
}

// ended is a container whose process got a signal that ends it: at once, or when it has finished.
type ended struct {
	container string
	atOnce    bool
}

func newFleet(s *stand) *fleet {
	return &fleet{s: s, sets: map[string]*appsv1.DaemonSet{}, busy: map[key]*sync.Mutex{}, ended: map[key]ended{}}
}

// hold keeps others from changing a daemon until release.
func (f *fleet) hold(k key) (release func()) {
	f.mu.Lock()
	m := f.busy[k]
	if m == nil {
		m = &sync.Mutex{}
		f.busy[k] = m
	}
	f.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// adapt gives an object of the installation what a lab needs to stop a daemon on one node.
func (f *fleet) adapt(o runtime.Object) {
	switch o := o.(type) {
	case *appsv1.DaemonSet:
		for _, p := range programs {
			if o.Name == p.name {
				o.Spec.Template.Spec.Affinity = nodeAffinity(corev1.NodeSelectorRequirement{Key: p.switchLabel(), Operator: corev1.NodeSelectorOpDoesNotExist})
			}
		}
	case *appsv1.Deployment:
		if o.Name == install.ControlName {
			selector := maps.Clone(o.Spec.Template.Spec.NodeSelector)
			if selector == nil {
				selector = map[string]string{}
			}
			selector[labelNode] = f.s.nodes.order[0] // as on other drivers
			o.Spec.Template.Spec.NodeSelector = selector
		}
	}
}

// load reads what is installed: what Start and Replace vary.
func (f *fleet) load(ctx context.Context) error {
	for daemon, p := range programs {
		if !p.perNode {
			continue
		}
		set := &appsv1.DaemonSet{}
		if err := f.s.api.res.Get(ctx, p.name, systemNamespace, set); err != nil {
			return fmt.Errorf("look for %s: %w", daemon, err)
		}
		set.ObjectMeta = plain(set.ObjectMeta)
		f.sets[daemon] = set
		f.current, _ = strconv.Atoi(set.Spec.Template.Annotations[annotationRound])
		f.round = max(f.round, f.current)
	}
	f.deploy = &appsv1.Deployment{}
	if err := f.s.api.res.Get(ctx, install.ControlName, systemNamespace, f.deploy); err != nil {
		return fmt.Errorf("look for %s: %w", lab.DaemonControl, err)
	}
	f.deploy.ObjectMeta = plain(f.deploy.ObjectMeta)
	return nil
}

// plain is what an object was given of its metadata, but for the lab's mark.
func plain(m metav1.ObjectMeta) metav1.ObjectMeta {
	labels := maps.Clone(m.Labels)
	delete(labels, LabelLab)
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, Labels: labels}
}

func nodeAffinity(want ...corev1.NodeSelectorRequirement) *corev1.Affinity {
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: want}}},
	}}
}

// keys are all daemons of the lab.
func (f *fleet) keys() []key {
	out := []key{{"", lab.DaemonControl}}
	for _, node := range f.s.nodes.order {
		out = append(out, key{node, lab.DaemonZtunnel}, key{node, lab.DaemonCNIAgent})
	}
	return out
}

// keyOf is the daemon that a pod runs.
func (f *fleet) keyOf(p *corev1.Pod) (key, bool) {
	if p.Namespace != systemNamespace {
		return key{}, false
	}
	for daemon, prog := range programs {
		if p.Labels[prog.selector[0]] != prog.selector[1] {
			continue
		}
		if !prog.perNode {
			return key{"", daemon}, true
		}
		node, ours := f.s.nodes.named[p.Spec.NodeName]
		return key{node, daemon}, ours
	}
	return key{}, false
}

// pods are those of a daemon, with the one that counts first: those that are about to end come last, those that are not ready
// after those that are, and of two that are alike the newer one comes first.
func (f *fleet) pods(k key) []*corev1.Pod {
	list := f.s.pods.list(func(p *corev1.Pod) bool {
		of, ok := f.keyOf(p)
		return ok && of == k
	})
	rank := func(p *corev1.Pod) int {
		switch {
		case p.DeletionTimestamp != nil:
			return 2
		case !podReady(p):
			return 1
		}
		return 0
	}
	slices.SortFunc(list, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// pod is the one that counts; nil if there is none that is not about to end.
func (f *fleet) pod(k key) *corev1.Pod {
	if list := f.pods(k); len(list) > 0 && list[0].DeletionTimestamp == nil {
		return list[0]
	}
	return nil
}

// awaitAll waits until every daemon is ready.
func (f *fleet) awaitAll(ctx context.Context) error {
	keys := f.keys()
	return f.s.pods.await(ctx, func() (string, bool) {
		var late []error
		for _, k := range keys {
			switch p := f.pod(k); {
			case p == nil:
				late = append(late, fmt.Errorf("%s: no pod was made", k))
			case !podReady(p):
				late = append(late, fmt.Errorf("%s: pod %s is not ready: %s", k, p.Name, f.s.pods.problem(p)))
			}
		}
		if len(late) == 0 {
			return "", true
		}
		return errors.Join(late...).Error(), false
	})
}

// main is the status of the container that a daemon's pod is about; nil before there is one.
func mainStatus(p *corev1.Pod) *corev1.ContainerStatus {
	if p == nil || len(p.Spec.Containers) == 0 {
		return nil
	}
	for i := range p.Status.ContainerStatuses {
		if c := &p.Status.ContainerStatuses[i]; c.Name == p.Spec.Containers[0].Name {
			return c
		}
	}
	return nil
}

// awaitNone waits until a daemon has no pod.
func (f *fleet) awaitNone(ctx context.Context, k key) error {
	return f.s.pods.await(ctx, func() (string, bool) {
		list := f.pods(k)
		if len(list) == 0 {
			return "", true
		}
		return fmt.Sprintf("pod %s does not end", list[0].Name), false
	})
}

// awaitRunning waits until a daemon's process runs that no signal of ours has ended.
func (f *fleet) awaitRunning(ctx context.Context, k key) error {
	return f.s.pods.await(ctx, func() (string, bool) {
		p := f.pod(k)
		c := mainStatus(p)
		if p == nil {
			return "no pod was made", false
		}
		return fmt.Sprintf("pod %s does not run: %s", p.Name, f.s.pods.problem(p)), c != nil && c.State.Running != nil && !f.dying(k, c.ContainerID)
	})
}

// dying reports whether a signal of ours ends a container, dead whether it has.
func (f *fleet) dying(k key, container string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended[k].container != "" && f.ended[k].container == container
}

func (f *fleet) dead(k key, container string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended[k].atOnce && f.ended[k].container == container
}

func (f *fleet) end(k key, e ended) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended[k] = e
}

// override puts variables in the place of others of the same name. "$" would be expanded.
func override(env []corev1.EnvVar, more []string) []corev1.EnvVar {
	env = slices.Clone(env)
	for _, v := range more {
		name, value, _ := strings.Cut(v, "=")
		env = slices.DeleteFunc(env, func(e corev1.EnvVar) bool { return e.Name == name })
		env = append(env, corev1.EnvVar{Name: name, Value: strings.ReplaceAll(value, "$", "$$")})
	}
	return env
}

// own is a DaemonSet that runs a daemon on one node alone, with other variables.
func (f *fleet) own(k key, env []string) *appsv1.DaemonSet {
	p, set := programs[k.daemon], f.sets[k.daemon].DeepCopy()
	set.Name = ownName(k)
	set.Spec.Selector = metav1.SetAsLabelSelector(map[string]string{p.selector[0]: p.selector[1], labelOwn: k.node})
	set.Spec.Template.Labels[labelOwn] = k.node
	set.Spec.Template.Spec.Affinity = nodeAffinity(corev1.NodeSelectorRequirement{Key: labelNode, Operator: corev1.NodeSelectorOpIn, Values: []string{k.node}})
	set.Spec.Template.Spec.Containers[0].Env = override(set.Spec.Template.Spec.Containers[0].Env, env)
	return set
}

func ownName(k key) string { return programs[k.daemon].name + "-" + k.node }
