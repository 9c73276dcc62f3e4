// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// podServer keeps annotations as an API server would, and shows them when it is told to.
type podServer struct {
	*fakes
	mu      sync.Mutex
	away    bool
	version int
	pods    map[string]*corev1.Pod
}

func (s *podServer) Annotate(_ context.Context, namespace, name, uid string, annotations map[string]string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		s.add("refused %s", uid)
		return "", errors.New("connection refused")
	}
	p := s.pods[namespace+"/"+name]
	if p == nil || string(p.UID) != uid {
		s.add("gone %s", uid)
		return "", nil
	}
	p = p.DeepCopy()
	for k, v := range annotations {
		p.Annotations[k] = v
		if v == "" {
			delete(p.Annotations, k)
		}
	}
	s.version++
	p.ResourceVersion = strconv.Itoa(s.version)
	s.pods[namespace+"/"+name] = p
	s.add("written %s %s", uid, fmt.Sprint(p.Annotations))
	return p.ResourceVersion, nil
}

func (s *podServer) setAway(away bool) { s.mu.Lock(); s.away = away; s.mu.Unlock() }

// show lets the objects tell what is there.
func (s *podServer) show() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.pods))
	s.mu.Unlock()
	for _, p := range all {
		s.set(p)
	}
}

func newAnnotations(t *testing.T, pods ...*corev1.Pod) (*Annotations, *podServer, func()) {
	t.Helper()
	s := &podServer{fakes: newFakes(), pods: map[string]*corev1.Pod{}, version: 10}
	for _, p := range pods {
		p.ResourceVersion = "10"
		s.pods[p.Namespace+"/"+p.Name] = p
	}
	s.show()
	a := NewAnnotations("node1", fakeSource{s.fakes}, s, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return a, s, stop
}

func recordedValue(a *Annotations, p *corev1.Pod) string { return a.Recorded()[refOf(p)] }

func TestAnnotationsAreWrittenOnce(t *testing.T) {
	web := pod("web")
	a, s, _ := newAnnotations(t, web)
	ref := refOf(web)
	must(t, a.Note(ref, "of a pod that has none"), a.Set(ref, mesh.RedirectionEnabled), a.Set(ref, mesh.RedirectionEnabled))
	s.expect(t, "written uid-web map[ambient.istio.io/redirection:enabled]")
	// The objects still show the pod as it was.
	if got := recordedValue(a, web); got != "enabled" {
		t.Errorf("recorded %q", got)
	}
	must(t, a.Set(ref, mesh.RedirectionEnabled))
	s.show()
	must(t, a.Set(ref, mesh.RedirectionEnabled), a.Note(ref, "rules: x"))
	s.expect(t, "written uid-web map[ambient.istio.io/redirection:enabled ambientlab.dev/drift:rules: x]")
	must(t, a.Clear(ref), a.Clear(ref))
	s.expect(t, "written uid-web map[]")
	s.show()
	must(t, a.Clear(ref))
	s.expectNothing(t)
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestAnAnnotationThatSomebodyRemovedIsWrittenAgain(t *testing.T) {
	web := pod("web")
	a, s, _ := newAnnotations(t, web)
	must(t, a.Set(refOf(web), mesh.RedirectionEnabled))
	s.expect(t, "written uid-web map[ambient.istio.io/redirection:enabled]")
	bare := pod("web")
	bare.ResourceVersion = "99"
	s.set(bare)
	if got := recordedValue(a, web); got != "" {
		t.Errorf("recorded %q", got)
	}
	must(t, a.Set(refOf(web), mesh.RedirectionEnabled))
	s.expect(t, "written uid-web map[ambient.istio.io/redirection:enabled]")
}

func TestAServerThatIsAwayHoldsUpNobody(t *testing.T) {
	web := pod("web")
	a, s, stop := newAnnotations(t, web)
	s.setAway(true)
	must(t, a.Set(refOf(web), mesh.RedirectionPending))
	s.expect(t, "refused uid-web")
	must(t, a.Set(refOf(web), mesh.RedirectionEnabled))
	if got := recordedValue(a, web); got != "enabled" {
		t.Errorf("recorded %q", got)
	}
	s.setAway(false)
	s.await(t, "the last value", func(events []string) bool {
		return slices.Contains(events, "written uid-web map[ambient.istio.io/redirection:enabled]") && !slices.Contains(events, "written uid-web map[ambient.istio.io/redirection:pending]")
	})
	stop()
}

// What is wished when the agent ends is written all the same: the next agent takes over what is recorded.
func TestTheLastWishesAreWritten(t *testing.T) {
	web := pod("web")
	a, s, stop := newAnnotations(t, web)
	s.setAway(true)
	must(t, a.Set(refOf(web), mesh.RedirectionEnabled))
	s.expect(t, "refused uid-web")
	s.mu.Lock()
	s.away = false
	a.queue.close() // nobody but the end writes now
	s.mu.Unlock()
	stop()
	s.await(t, "the wish", func(events []string) bool {
		return slices.Contains(events, "written uid-web map[ambient.istio.io/redirection:enabled]")
	})
}

func TestAPodThatIsGoneIsForgotten(t *testing.T) {
	web, old := pod("web"), pod("old")
	a, s, _ := newAnnotations(t, web, old)
	s.mu.Lock()
	delete(s.pods, "shop/web")
	s.mu.Unlock()
	must(t, a.Set(refOf(web), mesh.RedirectionEnabled))
	s.expect(t, "gone uid-web")
	eventually(t, "the wish to go", func() bool { return recordedValue(a, web) == "" })
	s.remove(web)
	must(t, a.Set(refOf(web), mesh.RedirectionEnabled), a.Clear(refOf(web)))
	other := PodRef{"shop", "old", "uid-of-another"}
	must(t, a.Set(other, mesh.RedirectionEnabled))
	s.expectNothing(t)
}

func TestPodsOfOtherNodesAreNotRecorded(t *testing.T) {
	far := pod("far", func(p *corev1.Pod) {
		p.Spec.NodeName = "node2"
		p.Annotations[mesh.AnnotationRedirection] = mesh.RedirectionEnabled
	})
	near := pod("near", func(p *corev1.Pod) { p.Annotations[mesh.AnnotationRedirection] = mesh.RedirectionEnabled })
	a, _, _ := newAnnotations(t, far, near)
	if got := a.Recorded(); len(got) != 1 || got[refOf(near)] != "enabled" {
		t.Errorf("%v", got)
	}
}
