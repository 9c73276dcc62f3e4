// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// networkBudget bounds waiting for nodes that get their CNI.
type networkBudget struct {
	ready time.Duration // for nodes to be Ready: images are pulled meanwhile
	pull  time.Duration // for an image that cannot be pulled: a registry may come back, a person may load it
	round time.Duration // between two looks at pods
}

func defaultNetworkBudget() networkBudget {
	return networkBudget{ready: 4 * time.Minute, pull: 90 * time.Second, round: 10 * time.Second}
}

// network installs a CNI and waits until nodes are Ready with it.
func (c *cluster) network(ctx context.Context, cni CNI, b networkBudget, say func(string)) error {
	say(fmt.Sprintf("kind cluster %s: installing the CNI %s", c.name, cni.Name))
	ctx, cancel := context.WithTimeout(ctx, b.ready)
	defer cancel()
	_, err := c.kubectlWith(ctx, bytes.NewReader(cni.manifest), "apply", "--server-side", "--filename=-")
	if err == nil {
		err = c.awaitEach(ctx, "create", readyBudget)
	}
	if err != nil {
		return fmt.Errorf("CNI %s: %w", cni.Name, err)
	}
	return c.awaitNetwork(ctx, b, say)
}

// awaitNetwork waits until every node is Ready, until an image cannot be had, or until ctx ends.
func (c *cluster) awaitNetwork(ctx context.Context, b networkBudget, say func(string)) error {
	began := time.Now()
	var waits []podWait
	var failing time.Time // since when pulls fail; the zero time: they do not
	for {
		round := time.After(b.round)
		err := c.awaitEach(ctx, "condition=Ready", b.round)
		if err == nil {
			return nil
		}
		if now, err := c.podWaits(ctx); err == nil {
			c.sayWaits(now, waits, say)
			waits = now
		}
		switch {
		case !slices.ContainsFunc(waits, podWait.pulls):
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
		}
		if end := ctx.Err(); end != nil {
			return c.noNetwork(fmt.Errorf("%w: %w", end, err), time.Since(began), waits)
		}
		if !failing.IsZero() && time.Since(failing) >= b.pull {
			return c.noNetwork(err, time.Since(began), waits)
		}
		select {
		case <-round:
		case <-ctx.Done():
		}
	}
}

// sayWaits says what pods wait for, if that has changed.
func (c *cluster) sayWaits(now, before []podWait, say func(string)) {
	if slices.EqualFunc(now, before, podWait.alike) {
		return
	}
	for _, w := range now {
		say(fmt.Sprintf("kind cluster %s: %s", c.name, w))
	}
	if slices.ContainsFunc(now, podWait.pulls) {
		say(fmt.Sprintf("kind cluster %s: %s", c.name, c.pullCure()))
	}
}

func (c *cluster) pullCure() string {
	return fmt.Sprintf("images of the CNI %s must be within the nodes' reach: a registry, or `kind load docker-image --name %s IMAGE` while nodes are waited for", c.CNI.Name, c.name)
}

// noNetwork is the error of nodes that do not become Ready.
func (c *cluster) noNetwork(err error, after time.Duration, waits []podWait) error {
	var b strings.Builder
	for _, w := range waits {
		fmt.Fprintf(&b, "\n  %s", w)
	}
	if len(waits) > 0 {
		err = fmt.Errorf("%w\npods that are not ready:%s", err, b.String())
	}
	if slices.ContainsFunc(waits, podWait.pulls) {
		err = fmt.Errorf("%w\n%s", err, c.pullCure())
	}
	return fmt.Errorf("CNI %s: nodes are not Ready after %.0f s: %w", c.CNI.Name, after.Seconds(), err)
}

// podWait is a pod that is not ready, and why.
type podWait struct {
	pod, node string // "" is no node yet
	container string // "" is the pod itself
	reason    string
	message   string
}

func (w podWait) String() string {
	text := w.pod
	if w.node != "" {
		text += " on " + w.node
	}
	text += ": "
	if w.container != "" {
		text += "container " + w.container + ": "
	}
	text += w.reason
	if w.message != "" {
		text += ": " + w.message
	}
	return text
}

// pulls reports whether an image is what the pod waits for, and does not get. Reasons are kubelet's.
func (w podWait) pulls() bool {
	return slices.Contains([]string{"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable"}, w.reason)
}

// alike reports whether a person who knows of one learns nothing from the other: pulls that fail and pulls that wait take turns.
func (w podWait) alike(o podWait) bool {
	return w.pod == o.pod && w.node == o.node && w.container == o.container && (w.reason == o.reason || w.pulls() && o.pulls())
}

// podWaits are the cluster's pods that are not ready, but for those that only wait for a node that is.
func (c *cluster) podWaits(ctx context.Context) ([]podWait, error) {
	out, err := c.kubectl(ctx, "get", "pods", "--all-namespaces", "--output=json")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("read pods: %w", err)
	}
	var waits []podWait
	for i := range list.Items {
		if w := waitOf(&list.Items[i]); w.reason != "" {
			waits = append(waits, w)
		}
	}
	return waits, nil
}

// waitOf is why a pod is not ready; its reason is "" if it is, or will be as soon as a node is.
func waitOf(p *corev1.Pod) podWait {
	w := podWait{pod: p.Namespace + "/" + p.Name, node: p.Spec.NodeName}
	conditions := map[corev1.PodConditionType]corev1.PodCondition{}
	for _, c := range p.Status.Conditions {
		conditions[c.Type] = c
	}
	scheduled := conditions[corev1.PodScheduled]
	switch {
	case conditions[corev1.PodReady].Status == corev1.ConditionTrue, p.Status.Phase == corev1.PodSucceeded:
		return w
	case scheduled.Status == corev1.ConditionFalse && strings.Contains(scheduled.Message, "untolerated taint"): // that the node is not ready
		return w
	case scheduled.Status == corev1.ConditionFalse:
		w.reason, w.message = scheduled.Reason, firstLine(scheduled.Message)
		return w
	}
	w.reason = string(p.Status.Phase)
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if on := s.State.Waiting; on != nil && on.Reason != "PodInitializing" { // the others wait for this one
			w.container, w.reason, w.message = s.Name, on.Reason, firstLine(on.Message)
			break
		}
	}
	return w
}

// firstLine is as much of a message as people read.
func firstLine(message string) string {
	const most = 300
	line, _, _ := strings.Cut(strings.TrimSpace(message), "\n")
	if r := []rune(line); len(r) > most {
		line = string(r[:most-1]) + "…"
	}
	return line
}

// ownPodNetwork reports whether pods have their network from package nodenet: the offline node image brings that, and no other CNI
// was asked for.
func (c *cluster) ownPodNetwork() bool { return c.nodenet && !c.CNI.asked() }

// bringsNodenet looks into the node image.
func (c *cluster) bringsNodenet(ctx context.Context) (bool, error) {
	manifest, err := c.output(ctx, c.nodes[0], "cat", "/kind/manifests/default-cni.yaml")
	return strings.Contains(manifest, "ambientlab/nodenet"), err
}

// enforces reports whether the cluster's CNI enforces NetworkPolicy objects: those of node images do.
func (s shape) enforces() bool { return !s.CNI.asked() || s.CNI.NetworkPolicy }
