// SPDX-License-Identifier: Apache-2.0

package shapes

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/topologies"
)

func project(t *testing.T, name string) *Project {
	t.Helper()
	all, err := Projects()
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	t.Fatalf("no project %s", name)
	return nil
}

func TestProjects(t *testing.T) {
	all, err := Projects()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		ways := 0
		for _, has := range []bool{p.NodeImage, p.Manifest != "", p.Render != "", p.Unsupported != ""} {
			if has {
				ways++
			}
		}
		if ways != 1 {
			t.Errorf("%s: %d ways to have it, want 1", p.Name, ways)
		}
		for _, moving := range []string{"/latest/", "/master/", "/main/"} {
			if strings.Contains(p.Manifest, moving) {
				t.Errorf("%s: %s is of no release", p.Name, p.Manifest)
			}
		}
	}
	for name, enforces := range map[string]bool{"kindnet": true, "flannel": false, "calico": true, "cilium": true} {
		if got := project(t, name).NetworkPolicy; got != enforces {
			t.Errorf("%s enforces NetworkPolicy: %v, want %v", name, got, enforces)
		}
	}
	// Without these Cilium removes the mesh's plugin, and hides the addresses of services from it.
	for _, set := range []string{"--set cni.exclusive=false", "--set socketLB.hostNamespaceOnly=true"} {
		if render := project(t, "cilium").Render; !strings.Contains(render, set) || strings.Contains(render, "\n") {
			t.Errorf("no %q in the one line %q", set, render)
		}
	}
	if got := ProjectNames(); got != "kindnet, flannel, calico, cilium" {
		t.Errorf("names %s", got)
	}
}

func TestProjectFits(t *testing.T) {
	subnets := func(of ...string) (out []netip.Prefix) {
		for _, s := range of {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for _, c := range []struct {
		project string
		family  topologies.IPFamily
		pods    []netip.Prefix
		want    []string // none: it fits
	}{
		{"flannel", topologies.Dual, subnets("10.244.0.0/16", "fd00:10:244::/56"), nil},
		{"flannel", topologies.IPv4, subnets("10.244.128.0/17"), nil},
		{"flannel", topologies.IPv4, subnets("10.245.0.0/16"), []string{"podSubnets 10.245.0.0/16", "10.244.0.0/16", "--cni flannel=FILE"}},
		{"flannel", topologies.IPv4, subnets("10.244.0.0/15"), []string{"podSubnets 10.244.0.0/15"}},
		{"flannel", topologies.IPv6, subnets("fd00:10:244::/56"), []string{"ipFamily ipv6", "--cni flannel=FILE"}},
		{"calico", topologies.IPv4, subnets("10.245.0.0/16"), nil},
		{"calico", topologies.IPv6, subnets("fd00:10:244::/56"), []string{"ipFamily ipv6"}},
		{"kindnet", topologies.IPv6, subnets("fd00:10:244::/56"), nil},
	} {
		err := project(t, c.project).Fits(&topologies.Cluster{IPFamily: c.family, PodSubnets: c.pods})
		if (err == nil) != (len(c.want) == 0) {
			t.Errorf("%s on %s %v: %v", c.project, c.family, c.pods, err)
		}
		for _, want := range c.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s on %s %v: no %q in %v", c.project, c.family, c.pods, want, err)
			}
		}
	}
}
