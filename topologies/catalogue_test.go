// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func TestCatalogue(t *testing.T) {
	for _, name := range Catalogue() {
		s, err := Open(name)
		if err != nil {
			t.Errorf("Open: %v", err)
			continue
		}
		if s.Name != name || s.Description == "" {
			t.Errorf("%s: name %q, description %q", name, s.Name, s.Description)
		}
		render(t, s)
	}
	if _, err := Open("none"); err == nil {
		t.Error("Open of an unknown topology succeeded")
	}
}

// The reachability matrix needs a pair of every kind: same and other node, captured or not on either side.
func TestThreeNodesHasEveryPair(t *testing.T) {
	s, err := Open("three-nodes")
	if err != nil {
		t.Fatal(err)
	}
	c := &s.Clusters[0]
	ambient := map[string]bool{}
	for _, n := range c.Namespaces {
		ambient[n.Name] = n.Labels[mesh.LabelDataplaneMode] == mesh.ModeAmbient
	}
	type pod struct {
		node     string
		captured bool
	}
	var pods []pod
	for i := range c.Workloads {
		w := &c.Workloads[i]
		captured := ambient[w.Namespace]
		if mode := w.Labels[mesh.LabelDataplaneMode]; mode != "" {
			captured = mode == mesh.ModeAmbient
		}
		for r := range w.Replicas {
			pods = append(pods, pod{w.Node(r), captured})
		}
	}
	if len(pods) != 12 || len(c.Nodes) != 3 || c.IPFamily != Dual {
		t.Errorf("%d pods on %d nodes, %s; want 12 on 3, dual", len(pods), len(c.Nodes), c.IPFamily)
	}
	type pair struct{ sameNode, from, to bool }
	got := map[pair]bool{}
	for i, a := range pods {
		for j, b := range pods {
			if i != j {
				got[pair{a.node == b.node, a.captured, b.captured}] = true
			}
		}
	}
	if len(got) != 8 {
		t.Errorf("%d kinds of pairs, want 8: %v", len(got), got)
	}
}

func TestNodePodSubnets(t *testing.T) {
	s, err := Open("three-nodes")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range 3 {
		for _, p := range s.Clusters[0].NodePodSubnets(i) {
			got = append(got, p.String())
		}
	}
	want := []string{
		"10.244.0.0/24", "fd00:10:244::/64", "10.244.1.0/24", "fd00:10:244:1::/64", "10.244.2.0/24", "fd00:10:244:2::/64",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("subnets (-want +got):\n%s", diff)
	}
}

func TestParsePort(t *testing.T) {
	for in, want := range map[string]Port{
		"80": {80, BindAny}, "80@any": {80, BindAny}, "65535@pod": {65535, BindPod}, "1@localhost": {1, BindLocalhost},
		"0": {}, "65536": {}, "": {}, "80@": {}, "80@eth0": {}, "-1": {}, "0x50": {},
	} {
		got, err := ParsePort(in)
		if got != want || (err == nil) != (want != Port{}) {
			t.Errorf("ParsePort(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
}
