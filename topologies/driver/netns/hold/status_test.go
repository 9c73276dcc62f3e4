// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
)

// statusSite has a directory for status files.
func statusSite(t *testing.T) *site {
	s := aSite(t)
	s.dir = labdir.Dir(t.TempDir())
	if err := os.MkdirAll(s.dir.Status(kubelet), 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// Whoever writes last, the file says what is the case, and after the pod there is none.
func TestStatusFileFollowsThePod(t *testing.T) {
	s := statusSite(t)
	p := aPod(s, "shop", "web", corev1.Container{})
	always := func() bool { return true }
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := s.setReady(p, always, i%2 == 0, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	path := filepath.Join(s.dir.Status(kubelet), "pod.shop.web.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var o corev1.Pod
	if err := json.Unmarshal(data, &o); err != nil {
		t.Fatal(err)
	}
	if said := o.Status.Conditions[0].Status == corev1.ConditionTrue; said != p.ready {
		t.Errorf("the file says %t, the pod is %t", said, p.ready)
	}
	if err := s.removeStatus(p); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.setReady(p, always, !p.ready, "late"), s.writeStatus(p)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("after the pod: %v, %v", left, err)
	}
}

func TestAnEarlierRunDoesNotSpeakForALaterOne(t *testing.T) {
	s := statusSite(t)
	p := aPod(s, "shop", "web", corev1.Container{})
	p.ready = true
	if err := s.setReady(p, func() bool { return false }, false, "the first run ended"); err != nil || !p.ready || p.problem != "" {
		t.Errorf("%v; ready %t, problem %q", err, p.ready, p.problem)
	}
}

func TestWritersOfOneFileDoNotMix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := writeAtomic(path, []byte("content")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o644 || info.Size() != 7 {
		t.Errorf("%v, %v", info, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}
