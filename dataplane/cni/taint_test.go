// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/admin"
)

const notReady = "cni.istio.io/not-ready"

type fakeNodes struct {
	*fakes
	err error
}

func (n *fakeNodes) Untaint(_ context.Context, node, key string) (bool, error) {
	if err := n.get(&n.err); err != nil {
		n.add("refused")
		return false, err
	}
	n.add("untaint %s %s", node, key)
	n.set(taintedNode(node, "other"))
	return true, nil
}

func taintedNode(name string, keys ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, k := range keys {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: k, Effect: corev1.TaintEffectNoSchedule})
	}
	return n
}

func TestTheTaintGoesWhenTheAgentIsReady(t *testing.T) {
	f := newFakes()
	nodes := &fakeNodes{fakes: f}
	ready := admin.NewReadiness("pods")
	f.set(taintedNode("node1", "other", notReady), taintedNode("node2", notReady))
	taint := &Taint{Node: "node1", Key: notReady, Objects: fakeSource{f}, Nodes: nodes, Ready: ready, Log: slog.New(slog.DiscardHandler), retry: time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- taint.Run(ctx) }()
	f.expectNothing(t)
	f.fail(&nodes.err, errors.New("forbidden"))
	ready.Done("pods")
	f.expect(t, "refused", "refused")
	f.fail(&nodes.err, nil)
	f.await(t, "the taint to go", func(events []string) bool { return slices.Contains(events, "untaint node1 "+notReady) })
	f.clear()
	f.set(taintedNode("node1", notReady)) // it comes again, with a node that is made anew
	f.expect(t, "untaint node1 "+notReady)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	f.expectNothing(t)
}
