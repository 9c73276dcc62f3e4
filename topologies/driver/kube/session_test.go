// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload/session"
)

func pod(name string, uid types.UID) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.UID = "shop", name, uid
	return p
}

// What outlasts a lab is a session with a pod that does, and nothing that the lab left running in it.
func TestSessionsOutlastLabsWithTheirPods(t *testing.T) {
	c := NewConnections()
	defer c.Close()
	nobody := func(context.Context, []string, lab.Stdio) (int, error) { return 0, errors.New("nobody is there") }
	open := func(p *corev1.Pod, byNode bool) *podSession {
		return c.session(sessionKey{p.UID, byNode}, refOf(p), nobody)
	}
	web, cart, batch := pod("web", "1"), pod("cart", "2"), pod("batch", "3")
	kept, busy, gone := open(web, false), open(cart, false), open(batch, false)
	if open(web, true) == kept {
		t.Error("a node's session is the API server's")
	}
	busy.running.Add(1)
	c.endCommands()
	c.forget(&podWatch{pods: map[lab.PodRef]*corev1.Pod{refOf(web): web, refOf(cart): cart, refOf(batch): pod("batch", "4")}})
	if open(web, false) != kept {
		t.Error("an idle session with a pod that stays was not kept")
	}
	if open(cart, false) == busy {
		t.Error("a session with a command of the last lab was kept")
	}
	if open(batch, false) == gone {
		t.Error("another pod of that name has the session of the first")
	}
	c.Close()
	if _, err := open(web, false).run(t.Context(), []string{"true"}, lab.Stdio{}); !errors.Is(err, session.ErrEnded) {
		t.Errorf("after Close a command was started: %v", err)
	}
}
