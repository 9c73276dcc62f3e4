// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

func specOf(t *testing.T, text string) *topologies.Spec {
	t.Helper()
	spec, err := topologies.Load(strings.NewReader("apiVersion: ambientlab.dev/v1alpha1\nkind: Topology\nname: links\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestLinksOf(t *testing.T) {
	for name, tc := range map[string]struct {
		spec string
		want map[string]nodenet.Links
		says []string
	}{
		"Ethernet": {spec: "clusters: [{name: K, nodes: [{name: a}, {name: b}]}]"},
		"narrow": {
			spec: "clusters: [{name: K, nodes: [{name: a, mtu: 9000, plainPackets: true}, {name: b, mtu: 9000}, {name: c, mtu: 1280}, {name: d}]}]\nlinks: [{between: [a, b], mtu: 1400}, {between: [a, d], mtu: 1500}]",
			want: map[string]nodenet.Links{
				"a": {MTU: 9000, PlainPackets: true, PathMTU: map[string]int{"b": 1400, "c": 1280}},
				"b": {MTU: 9000, PathMTU: map[string]int{"a": 1400, "c": 1280}},
				"c": {MTU: 1280, PathMTU: map[string]int{"a": 1280, "b": 1280, "d": 1280}},
				"d": {PathMTU: map[string]int{"c": 1280}},
			},
		},
		"wider than Docker's network": {
			spec: "clusters: [{name: K, nodes: [{name: a, mtu: 9000}, {name: b, mtu: 9000}]}]\nexternal: [{name: out, addresses: [203.0.113.7], mtu: 1400}]",
			says: []string{"nodes a and b: packets of 9000 do not pass", "external host out"},
		},
	} {
		got, err := linksOf(specOf(t, tc.spec))
		for _, want := range tc.says {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		if len(tc.says) == 0 && (err != nil || cmp.Diff(tc.want, got) != "" && len(tc.want)+len(got) > 0) {
			t.Errorf("%s: %v\n%s", name, err, cmp.Diff(tc.want, got))
		}
	}
}

// TestLinksAreSetAndCleared: the record says so before anything is done, and no more when all is undone.
func TestLinksAreSetAndCleared(t *testing.T) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	c := &cluster{name: "lab", dir: record(dir), nodes: []string{"lab-control-plane", "lab-worker"}, nodenet: true, tools: playing(t, `echo "$*" >> `+calls+`
grep -q '"links": true' `+dir+`/lab.json || echo unrecorded >> `+calls)}
	spec := specOf(t, "clusters: [{name: K, nodes: [{name: a, mtu: 1280}, {name: b}]}]")
	said, err := c.setLinks(t.Context(), spec)
	if err != nil || said == "" {
		t.Fatal(said, err)
	}
	other, err := c.setLinks(t.Context(), specOf(t, "clusters: [{name: K, nodes: [{name: a, mtu: 1300}, {name: b}]}]"))
	if err != nil || other == said {
		t.Errorf("other links are said to be %q, %v", other, err)
	}
	if err := c.clearLinks(t.Context()); err != nil || c.about().Links {
		t.Errorf("cleared: %+v, %v", c.about(), err)
	}
	text, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`annotate --overwrite node lab-control-plane nodenet.ambientlab.dev/links={"mtu":1280,"pathMTU":{"lab-worker":1280}}`,
		`annotate --overwrite node lab-worker nodenet.ambientlab.dev/links={"pathMTU":{"lab-control-plane":1280}}`,
		"annotate --overwrite node lab-worker nodenet.ambientlab.dev/links-", `"links": *"` + nodenet.LinksDone(`{"pathMTU":{"lab-control-plane":1280}}`) + `"`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "unrecorded") {
		t.Errorf("nodes were changed before the record said so:\n%s", text)
	}
	c.nodenet = false
	if _, err := c.setLinks(t.Context(), spec); !errors.Is(err, lab.ErrUnsupported) {
		t.Errorf("another CNI's links were changed: %v", err)
	}
}
