// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies"
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

// TestLinksScript runs what waits on a node, against files and routes of other content.
func TestLinksScript(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	put("mtu", "1500\n")
	ends := func(l nodenet.Links) bool {
		script := strings.NewReplacer("/etc/cni/net.d", dir, "/sys/class/net/eth0", dir, "do sleep 0.05;", "do exit 1;").Replace(linksScript(l))
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		return cmd.Run() == nil
	}
	asked := nodenet.Links{MTU: 9000, PlainPackets: true, PathMTU: map[string]int{"a": 1400, "b": 1280}}
	const wide, narrow = `{"type": "ptp", "mtu": 1500}`, `{"type":"ptp","mtu":9000},{"type":"plainpackets"}`
	for _, tc := range []struct {
		conf, routes  string
		asked, undone bool
	}{
		{wide, "10.0.0.0/8 via 172.18.0.3 proto 76", false, true},
		{narrow, "10.0.0.0/8 via 172.18.0.3 proto 76 mtu 1400\n10.1.0.0/16 proto 76 mtu 1280 ", true, false},
		{narrow, "10.0.0.0/8 via 172.18.0.3 proto 76 mtu 1400", false, false},
		{`{"type":"ptp","mtu":9000}`, "10.0.0.0/8 mtu 1400\n10.1.0.0/16 mtu 1280", false, false},
		{wide, "10.0.0.0/8 via 172.18.0.3 proto 76 mtu 1400", false, false},
	} {
		put("10-nodenet.conflist", tc.conf)
		put("ip", "#!/bin/sh\nprintf '%s\\n' '"+tc.routes+"'\n")
		if got := ends(asked); got != tc.asked {
			t.Errorf("%+v: as asked: %v", tc, got)
		}
		if got := ends(nodenet.Links{}); got != tc.undone {
			t.Errorf("%+v: as before: %v", tc, got)
		}
	}
}
