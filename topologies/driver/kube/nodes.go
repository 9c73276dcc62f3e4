// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/e2e-framework/klient/k8s"

	"github.com/ambientlab/ambientlab/topologies"
)

// labelControlPlane is what kubeadm, and with it kind, puts on nodes that take no work.
const labelControlPlane = "node-role.kubernetes.io/control-plane"

// annotationUndo on a node keeps, as JSON, the labels that it had before the lab changed them; null is none.
const annotationUndo = "ambientlab.dev/undo"

// prefixOwn is that of labels which only labs put on nodes.
const prefixOwn = "ambientlab.dev/"

// nodes are the topology's nodes on the cluster.
type nodes struct {
	real  map[string]string      // by the topology's name, the cluster's
	named map[string]string      // the other way round
	at    map[string]corev1.Node // by the topology's name, as they were when the lab came up
	order []string               // the topology's
}

// cluster is the cluster's name of a node; a name that the topology has not is the cluster's already.
func (n *nodes) cluster(name string) string {
	if real, ok := n.real[name]; ok {
		return real
	}
	return name
}

// topology is the topology's name of a node.
func (n *nodes) topology(name string) string {
	if t, ok := n.named[name]; ok {
		return t
	}
	return name
}

// find is the cluster's name of a node that the topology must have.
func (n *nodes) find(name string) (string, error) {
	if real, ok := n.real[name]; ok {
		return real, nil
	}
	return "", fmt.Errorf("the topology has no node %q; there are: %s", name, strings.Join(n.order, ", "))
}

// assign gives each node of the topology one of the cluster's.
func assign(have []corev1.Node, want []topologies.Node, given map[string]string) (*nodes, error) {
	n := &nodes{real: map[string]string{}, named: map[string]string{}, at: map[string]corev1.Node{}}
	by := map[string]corev1.Node{}
	for _, node := range have {
		by[node.Name] = node
	}
	free := usable(have)
	var errs []error
	for i, t := range want {
		real, ok := given[t.Name]
		if given == nil && i < len(free) {
			real, ok = free[i], true
		}
		_, there := by[real]
		switch {
		case given != nil && !ok:
			errs = append(errs, fmt.Errorf("node %s: Options.Nodes does not name the cluster's node", t.Name))
		case !ok:
			errs = append(errs, fmt.Errorf("node %s: the cluster has only %d nodes that take work: %s", t.Name, len(free), strings.Join(free, ", ")))
		case !there:
			errs = append(errs, fmt.Errorf("node %s: the cluster has no node %q", t.Name, real))
		case n.named[real] != "":
			errs = append(errs, fmt.Errorf("node %s: the cluster's %s is %s already", t.Name, real, n.named[real]))
		default:
			n.real[t.Name], n.named[real], n.at[t.Name] = real, t.Name, by[real]
			n.order = append(n.order, t.Name)
		}
	}
	return n, errors.Join(errs...)
}

// usable are the workers by name, or all if there are none.
func usable(have []corev1.Node) []string {
	var workers, all []string
	for _, node := range have {
		all = append(all, node.Name)
		if _, control := node.Labels[labelControlPlane]; !control && !node.Spec.Unschedulable {
			workers = append(workers, node.Name)
		}
	}
	if len(workers) == 0 {
		workers = all
	}
	slices.Sort(workers)
	return workers
}

// label gives a node labels and notes what it had, unless an earlier call did or the label is one that only labs put there. A
// value of "" takes the label away.
func (c *client) label(ctx context.Context, name string, labels map[string]string) error {
	return c.relabel(ctx, name, labels, false)
}

// labelOnly is label, and undoes what was noted of others.
func (c *client) labelOnly(ctx context.Context, name string, labels map[string]string) error {
	return c.relabel(ctx, name, labels, true)
}

func (c *client) relabel(ctx context.Context, name string, labels map[string]string, only bool) error {
	var node corev1.Node
	err := c.res.Get(ctx, name, "", &node)
	var patch, undo map[string]*string
	if err == nil {
		undo, err = noted(&node)
	}
	if err == nil {
		patch = planLabels(node.Labels, undo, labels, only)
	}
	if err != nil || len(patch) == 0 {
		return labelling(err, name)
	}
	if len(undo) == 0 {
		return c.patchNode(ctx, name, patch, nil)
	}
	note, err := json.Marshal(undo)
	if err != nil {
		return labelling(err, name)
	}
	return c.patchNode(ctx, name, patch, map[string]*string{annotationUndo: new(string(note))})
}

func labelling(err error, node string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("label node %s: %w", node, err)
}

// noted are the labels that a node had before a lab changed them; nil is none.
func noted(node *corev1.Node) (map[string]*string, error) {
	undo := map[string]*string{}
	if text := node.Annotations[annotationUndo]; text != "" {
		if err := json.Unmarshal([]byte(text), &undo); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", annotationUndo, err)
		}
	}
	return undo, nil
}

// planLabels is what to change of the labels that a node has now, where nil takes one away. What that is about to cover is added to undo;
// with only, what was noted of labels that are not wanted is undone.
func planLabels(now map[string]string, undo map[string]*string, want map[string]string, only bool) map[string]*string {
	patch := map[string]*string{}
	for k, old := range undo {
		if _, wanted := want[k]; only && !wanted {
			patch[k] = old
		}
	}
	for k, v := range want {
		if _, is := undo[k]; !is && !strings.HasPrefix(k, prefixOwn) {
			undo[k] = nil
			if old, had := now[k]; had {
				undo[k] = &old
			}
		}
		if patch[k] = nil; v != "" {
			patch[k] = &v
		}
	}
	maps.DeleteFunc(patch, func(k string, v *string) bool {
		old, has := now[k]
		return has == (v != nil) && (!has || old == *v)
	})
	return patch
}

// startStopped takes away what keeps daemons from nodes that a lab has stopped them on: they start while the mesh waits for the next.
func (c *client) startStopped(ctx context.Context) error {
	return c.eachNode(ctx, func(node *corev1.Node) (patch, annotations map[string]*string, err error) {
		return ownLabels(node, labelMember, labelNode), nil, nil
	})
}

// unlabel undoes what label did to all nodes, but for some labels that only labs put there.
func (c *client) unlabel(ctx context.Context, but ...string) error {
	return c.eachNode(ctx, func(node *corev1.Node) (patch, annotations map[string]*string, err error) {
		patch, err = noted(node)
		if err == nil {
			maps.Copy(patch, ownLabels(node, but...))
		}
		return patch, map[string]*string{annotationUndo: nil}, err
	})
}

// ownLabels takes away the labels of a node that only labs put there, but for some.
func ownLabels(node *corev1.Node, but ...string) map[string]*string {
	patch := map[string]*string{}
	for k := range node.Labels {
		if strings.HasPrefix(k, prefixOwn) && !slices.Contains(but, k) {
			patch[k] = nil
		}
	}
	return patch
}

// eachNode patches nodes of which there is something to patch.
func (c *client) eachNode(ctx context.Context, plan func(*corev1.Node) (labels, annotations map[string]*string, err error)) error {
	var list corev1.NodeList
	if err := c.res.List(ctx, &list); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	var errs []error
	for i := range list.Items {
		node := &list.Items[i]
		labels, annotations, err := plan(node)
		if err != nil {
			errs = append(errs, labelling(err, node.Name))
		} else if len(labels) > 0 {
			errs = append(errs, c.patchNode(ctx, node.Name, labels, annotations))
		}
	}
	return errors.Join(errs...)
}

func (c *client) patchNode(ctx context.Context, name string, labels, annotations map[string]*string) error {
	data, err := nodePatch(labels, annotations)
	if err != nil {
		return err
	}
	node := &corev1.Node{}
	node.Name = name
	return labelling(c.res.Patch(ctx, node, k8s.Patch{PatchType: types.MergePatchType, Data: data}), name)
}

// nodePatch changes labels and annotations of a node, where nil takes one away; in a merge patch (RFC 7386) null in the place of a map
// would take away all, those of the cluster's CNI too.
func nodePatch(labels, annotations map[string]*string) ([]byte, error) {
	metadata := map[string]any{}
	if len(labels) > 0 {
		metadata["labels"] = labels
	}
	if len(annotations) > 0 {
		metadata["annotations"] = annotations
	}
	return json.Marshal(map[string]any{"metadata": metadata})
}

// topologyLabels are those that the topology gives a node, without those by which Kubernetes knows it.
func topologyLabels(n *corev1.Node) map[string]string {
	labels := maps.Clone(n.Labels)
	delete(labels, corev1.LabelHostname)
	delete(labels, topologies.LabelProvidedBy)
	return labels
}

// taint adds taints to a node; those that it has stay. Who adds one sees to it that it goes.
func (c *client) taint(ctx context.Context, name string, taints []corev1.Taint) error {
	var node corev1.Node
	err := c.res.Get(ctx, name, "", &node)
	var patch []byte
	if err == nil { // with the version, since a patch replaces the whole list
		patch, err = json.Marshal(map[string]any{
			"metadata": map[string]any{"resourceVersion": node.ResourceVersion}, "spec": map[string]any{"taints": append(node.Spec.Taints, taints...)},
		})
	}
	if err == nil {
		err = c.res.Patch(ctx, &node, k8s.Patch{PatchType: types.MergePatchType, Data: patch})
	}
	if err != nil {
		return fmt.Errorf("taint node %s: %w", name, err)
	}
	return nil
}
