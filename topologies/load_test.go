// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(list) == 0 {
		t.Fatalf("no testdata %s (%v)", pattern, err)
	}
	return list
}

func TestLoadBad(t *testing.T) {
	for _, path := range files(t, "*.bad.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			_, err = Load(f)
			var ps Problems
			if !errors.As(err, &ps) {
				t.Fatalf("Load: %v, want Problems", err)
			}
			golden(t, strings.TrimSuffix(path, ".yaml")+".txt", ps.Error()+"\n")
		})
	}
}

// A topology with five mistakes reports five, each with its path (issue 3).
func TestLoadReportsEveryMistakeOnce(t *testing.T) {
	_, err := LoadFile("testdata/five-mistakes.bad.yaml")
	var ps Problems
	if !errors.As(err, &ps) {
		t.Fatalf("LoadFile: %v, want Problems", err)
	}
	want := []string{
		"clusters[0].ipFamily", "clusters[0].workloads[0].replica", "clusters[0].workloads[1].replicas",
		"clusters[0].workloads[2].node", "clusters[0].services[0].namespace",
	}
	var got []string
	for _, p := range ps {
		got = append(got, p.Path)
		if p.Line == 0 {
			t.Errorf("%s: no line", p)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
}

func render(t *testing.T, s *Spec) string {
	t.Helper()
	var b strings.Builder
	for _, c := range s.Clusters {
		objs, err := s.Objects(c.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objs {
			data, err := yaml.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString("---\n")
			b.Write(data)
		}
	}
	return b.String()
}

func TestObjects(t *testing.T) {
	for _, path := range files(t, "*.good.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			s, err := LoadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := render(t, s)
			golden(t, strings.TrimSuffix(path, ".yaml")+".objects.yaml", got)
			if again := render(t, s); again != got {
				t.Error("a second rendering differs")
			}
		})
	}
}

func TestDocumentIsWhatLoadReads(t *testing.T) {
	for _, name := range Catalogue() {
		want, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := want.Document()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Load(bytes.NewReader(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(render(t, want), render(t, got)); diff != "" {
			t.Errorf("%s: objects (-want +got):\n%s", name, diff)
		}
		again, err := got.Document()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(text), string(again)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestValidateBuiltSpec(t *testing.T) {
	s := &Spec{Name: "built", Clusters: []Cluster{{Nodes: []Node{{Name: "n1"}}, Workloads: []Workload{
		{Name: "web", Namespace: "default", Replicas: 1},
		{Name: "odd", Namespace: "nowhere", Replicas: 1},
	}}}}
	err := s.Validate()
	want := `clusters[0].workloads[1].namespace: no namespace "nowhere"; there are default, istio-system, kube-system`
	if err == nil || err.Error() != want {
		t.Errorf("Validate: %v, want %s", err, want)
	}
	s.Clusters[0].Workloads = s.Clusters[0].Workloads[:1]
	if err := s.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	for _, pattern := range []string{"*.good.yaml", "*.bad.yaml"} {
		list, _ := filepath.Glob(filepath.Join("testdata", pattern))
		for _, path := range list {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(data))
		}
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Load(strings.NewReader(in))
		if err != nil {
			return
		}
		for _, c := range s.Clusters {
			if _, err := s.Objects(c.Name); err != nil {
				t.Errorf("Objects of a good topology: %v", err)
			}
		}
	})
}
