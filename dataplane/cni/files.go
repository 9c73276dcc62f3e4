// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// NetnsDir finds namespaces in a directory with one file per pod: its name is the pod's uid, its content the path of the
// pod's namespace.
type NetnsDir string

// Find implements Finder.
func (d NetnsDir) Find(uid string) (*netns.NS, error) {
	if uid == "" || strings.ContainsAny(uid, "/\x00") || uid[0] == '.' {
		return nil, fmt.Errorf("find the namespace of pod %q: not a uid", uid)
	}
	b, err := os.ReadFile(filepath.Join(string(d), uid))
	if err != nil {
		return nil, fmt.Errorf("find the namespace of pod %s: %w", uid, err)
	}
	ns, err := netns.Open(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("find the namespace of pod %s: %w", uid, err)
	}
	return ns, nil
}

// StatusDir records annotations in a directory of its own with one file per pod, which a source merges over the pod's
// object. Files are replaced atomically and survive the agent. Make it with NewStatusDir.
type StatusDir struct {
	dir string // set once

	mu   sync.Mutex
	pods map[string]record // by "namespace/name"
}

type record struct {
	ref   PodRef
	value string
	drift string
}

// AnnotationDrift is where Note writes; upstream has no such thing.
const AnnotationDrift = "ambientlab.dev/drift"

// NewStatusDir makes dir if need be and reads what an earlier agent wrote there. A file that cannot be read is removed: the
// pod is enrolled anew, which changes nothing where nothing is amiss.
func NewStatusDir(dir string) (*StatusDir, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open status directory: %w", err)
	}
	d := &StatusDir{dir: dir, pods: map[string]record{}}
	files, err := filepath.Glob(filepath.Join(dir, "pod.*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("open status directory: %w", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("open status directory: %w", err)
		}
		var p corev1.Pod
		if json.Unmarshal(b, &p) != nil || p.UID == "" || filepath.Base(f) != fileName(refOf(&p)) {
			if err := os.Remove(f); err != nil {
				return nil, fmt.Errorf("open status directory: %w", err)
			}
			continue
		}
		ref := refOf(&p)
		d.pods[ref.String()] = record{ref, p.Annotations[mesh.AnnotationRedirection], p.Annotations[AnnotationDrift]}
	}
	return d, nil
}

func fileName(p PodRef) string { return "pod." + p.Namespace + "." + p.Name + ".yaml" }

// Set implements Annotator.
func (d *StatusDir) Set(p PodRef, value string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	want := record{ref: p, value: value}
	if old := d.pods[p.String()]; old.ref == p {
		want.drift = old.drift
	}
	return d.write(want)
}

// Note implements Annotator.
func (d *StatusDir) Note(p PodRef, drift string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	want := d.pods[p.String()]
	if want.ref != p {
		return nil
	}
	want.drift = drift
	return d.write(want)
}

// write is called with mu held.
func (d *StatusDir) write(want record) error {
	p := want.ref
	if d.pods[p.String()] == want {
		return nil
	}
	annotations := map[string]string{mesh.AnnotationRedirection: want.value}
	if want.drift != "" {
		annotations[AnnotationDrift] = want.drift
	}
	b, err := json.Marshal(&corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID), Annotations: annotations},
	})
	if err != nil {
		return fmt.Errorf("annotate %s: %w", p, err)
	}
	path := filepath.Join(d.dir, fileName(p))
	hidden := filepath.Join(d.dir, "."+fileName(p))
	if err := os.WriteFile(hidden, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("annotate %s: %w", p, err)
	}
	if err := os.Rename(hidden, path); err != nil {
		return fmt.Errorf("annotate %s: %w", p, err)
	}
	d.pods[p.String()] = want
	return nil
}

// Clear implements Annotator.
func (d *StatusDir) Clear(p PodRef) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pods[p.String()].ref != p {
		return nil
	}
	if err := os.Remove(filepath.Join(d.dir, fileName(p))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear the annotation of %s: %w", p, err)
	}
	delete(d.pods, p.String())
	return nil
}

// Recorded implements Annotator.
func (d *StatusDir) Recorded() map[PodRef]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[PodRef]string, len(d.pods))
	for _, r := range d.pods {
		out[r.ref] = r.value
	}
	return out
}
