// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/topologies"
)

func node(name string, control bool) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	if control {
		n.Labels[labelControlPlane] = ""
	}
	return n
}

// A patch leaves alone what it does not name.
func TestNodePatch(t *testing.T) {
	for _, tc := range []struct {
		labels, annotations map[string]*string
		want                string
	}{
		{map[string]*string{"a": new("b"), "c": nil}, nil, `{"metadata":{"labels":{"a":"b","c":null}}}`},
		{nil, map[string]*string{"a": nil}, `{"metadata":{"annotations":{"a":null}}}`},
	} {
		if got, err := nodePatch(tc.labels, tc.annotations); err != nil || string(got) != tc.want {
			t.Errorf("%s, %v, want %s", got, err, tc.want)
		}
	}
}

func TestNodesAreAssigned(t *testing.T) {
	have := []corev1.Node{node("c-worker2", false), node("c-control-plane", true), node("c-worker", false)}
	want := []topologies.Node{{Name: "node1"}, {Name: "node2"}}
	for _, c := range []struct {
		name  string
		have  []corev1.Node
		given map[string]string
		want  map[string]string
		err   string
	}{
		{"workers by name", have, nil, map[string]string{"node1": "c-worker", "node2": "c-worker2"}, ""},
		{"all where there are no workers", []corev1.Node{node("b", true), node("a", true)}, nil, map[string]string{"node1": "a", "node2": "b"}, ""},
		{"as given", have, map[string]string{"node1": "c-worker2", "node2": "c-control-plane"}, map[string]string{"node1": "c-worker2", "node2": "c-control-plane"}, ""},
		{"too few", have[:2], nil, nil, "node node2: the cluster has only 1 nodes"},
		{"one left out", have, map[string]string{"node1": "c-worker"}, nil, "node node2: Options.Nodes does not name"},
		{"one that is not there", have, map[string]string{"node1": "c-worker", "node2": "x"}, nil, `the cluster has no node "x"`},
		{"one twice", have, map[string]string{"node1": "c-worker", "node2": "c-worker"}, nil, "c-worker is node1 already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := assign(c.have, want, c.given)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, n.real); diff != "" {
				t.Error(diff)
			}
			for topology, real := range c.want {
				if n.topology(real) != topology || n.cluster(topology) != real {
					t.Errorf("%s and %s do not lead to each other", topology, real)
				}
			}
		})
	}
}

func TestLabelsAreChangedOnceAndUndone(t *testing.T) {
	now := map[string]string{"zone": "a", "role": "", labelNode: "node1"}
	for name, c := range map[string]struct {
		undo map[string]*string
		want map[string]string
		only bool
		then map[string]*string // the patch
		note map[string]*string
	}{
		"as they are":                {nil, map[string]string{"zone": "a", labelNode: "node1"}, true, map[string]*string{}, map[string]*string{"zone": new("a")}},
		"another value":              {nil, map[string]string{"zone": "b"}, false, map[string]*string{"zone": new("b")}, map[string]*string{"zone": new("a")}},
		"a new one":                  {nil, map[string]string{"rack": "1"}, false, map[string]*string{"rack": new("1")}, map[string]*string{"rack": nil}},
		"one less":                   {nil, map[string]string{"role": ""}, false, map[string]*string{"role": nil}, map[string]*string{"role": new("")}},
		"one of labs' own":           {nil, map[string]string{labelMember: member}, false, map[string]*string{labelMember: new(member)}, map[string]*string{}},
		"what was noted first stays": {map[string]*string{"zone": new("0")}, map[string]string{"zone": "b"}, false, map[string]*string{"zone": new("b")}, map[string]*string{"zone": new("0")}},
		"others are left":            {map[string]*string{"zone": new("0")}, map[string]string{}, false, map[string]*string{}, map[string]*string{"zone": new("0")}},
		"others are undone":          {map[string]*string{"zone": new("0"), "role": nil}, map[string]string{}, true, map[string]*string{"zone": new("0"), "role": nil}, map[string]*string{"zone": new("0"), "role": nil}},
		"others were undone":         {map[string]*string{"zone": new("a"), "rack": nil}, map[string]string{}, true, map[string]*string{}, map[string]*string{"zone": new("a"), "rack": nil}},
	} {
		undo := c.undo
		if undo == nil {
			undo = map[string]*string{}
		}
		if diff := cmp.Diff(c.then, planLabels(now, undo, c.want, c.only)); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(c.note, undo); diff != "" {
			t.Errorf("%s: noted (-want +got):\n%s", name, diff)
		}
	}
	n := node("c-worker", false)
	n.Labels = map[string]string{"zone": "a", labelMember: member, prefixOwn + "ztunnel": runStopped}
	if diff := cmp.Diff(map[string]*string{prefixOwn + "ztunnel": nil}, ownLabels(&n, labelMember, labelNode)); diff != "" {
		t.Error(diff)
	}
}
