// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// A deletion that finds a pod waits for whoever starts it, from the moment at which it can be found.
func TestAPodIsHeldUntilItIsStarted(t *testing.T) {
	s := aSite(t)
	s.run = t.Context()
	s.nodes = map[string]*node{"node1": aNode(s)}
	p, err := s.newPod(aPod(s, "shop", "web", corev1.Container{}).object())
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { p.starting.Wait(); close(released) })
	select {
	case <-released:
		t.Error("a pod that nobody has started yet is not held")
	default:
	}
	s.dismiss([]*pod{p})
	wg.Wait()
	if _, err := s.place(&lab.Target{Pod: p.ref}); err == nil {
		t.Error("a pod that was dismissed is found")
	}
}
