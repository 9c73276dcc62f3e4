// SPDX-License-Identifier: Apache-2.0

package shapes

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ambientlab/ambientlab/topologies"
)

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{})

func TestShapes(t *testing.T) {
	subnets := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	want := map[string]ClusterOptions{
		"default":  {Nodes: 3, IPFamily: topologies.IPv4},
		"dual":     {Nodes: 3, IPFamily: topologies.Dual},
		"ipv6":     {Nodes: 3, IPFamily: topologies.IPv6},
		"nftables": {Nodes: 3, IPFamily: topologies.IPv4, KubeProxyMode: "nftables"},
		"no-cni":   {Nodes: 3, IPFamily: topologies.IPv4, DisableDefaultCNI: true},
		"second":   {Nodes: 2, IPFamily: topologies.IPv4, PodSubnets: subnets("10.245.0.0/16"), ServiceSubnets: subnets("10.97.0.0/16")},
	}
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			got, err := Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want[name], got, comparePrefixes); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			text, err := Cluster(got)
			if err != nil {
				t.Fatal(err)
			}
			again, err := parse(text)
			if err != nil {
				t.Fatalf("%v:\n%s", err, text)
			}
			if diff := cmp.Diff(got, again, comparePrefixes); diff != "" {
				t.Errorf("what is rendered is another cluster (-want +got):\n%s", diff)
			}
		})
	}
	if len(Names()) != len(want) {
		t.Errorf("shapes %v, want %d", Names(), len(want))
	}
}

// Subnets of clusters that stand side by side must not meet.
func TestSecondHasSubnetsOfItsOwn(t *testing.T) {
	o, err := Open("second")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(o.PodSubnets, o.ServiceSubnets...) {
		for _, kinds := range []string{"10.244.0.0/16", "10.96.0.0/16"} {
			if p.Overlaps(netip.MustParsePrefix(kinds)) {
				t.Errorf("%s overlaps kind's default %s", p, kinds)
			}
		}
	}
}

func TestClusterWithEverything(t *testing.T) {
	got, err := Cluster(ClusterOptions{
		Name: "lab-1", Nodes: 2, IPFamily: topologies.Dual, KubeProxyMode: "none", DisableDefaultCNI: true, Image: "kindest/node:v1.34.4",
		UnsafeSysctls:  []string{"net.ipv4.tcp_tw_reuse"},
		Ephemeral:      true,
		PodSubnets:     []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd01::/56")},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd02::/112")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
name: lab-1
networking:
  ipFamily: dual
  podSubnet: "10.1.0.0/16,fd01::/56"
  serviceSubnet: "10.2.0.0/16,fd02::/112"
  kubeProxyMode: "none"
  disableDefaultCNI: true
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  allowedUnsafeSysctls:
  - net.ipv4.tcp_tw_reuse
  syncFrequency: 10s
- |
  apiVersion: kubeadm.k8s.io/v1beta3
  kind: ClusterConfiguration
  etcd:
    local:
      extraArgs:
        unsafe-no-fsync: "true"
        backend-batch-interval: 1s
  controllerManager:
    extraArgs:
      leader-elect: "false"
  scheduler:
    extraArgs:
      leader-elect: "false"
  featureGates:
    PublicKeysECDSA: true
nodes:
- role: control-plane
  image: "kindest/node:v1.34.4"
- role: worker
  image: "kindest/node:v1.34.4"
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBadClusters(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd01::/56")
	for name, c := range map[string]struct {
		o    ClusterOptions
		want string
	}{
		"name":         {ClusterOptions{Name: "My Lab"}, `name "My Lab"`},
		"nodes":        {ClusterOptions{Nodes: -1}, "-1 nodes"},
		"family":       {ClusterOptions{IPFamily: "ipv5"}, `IP family "ipv5"`},
		"proxy":        {ClusterOptions{KubeProxyMode: "ebpf"}, `kube-proxy mode "ebpf"`},
		"wrong family": {ClusterOptions{PodSubnets: []netip.Prefix{v6}}, "pod subnets fd01::/56: want at most one of each family of ipv4"},
		"two of one":   {ClusterOptions{ServiceSubnets: []netip.Prefix{v4, v4}}, "service subnets"},
		"host bits":    {ClusterOptions{PodSubnets: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/16")}}, "without host bits"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Cluster(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: want %q in it", err, c.want)
			}
		})
	}
	if _, err := Open("star"); err == nil || !strings.Contains(err.Error(), "there are default, dual") {
		t.Errorf("a shape that is not there: %v", err)
	}
}

func TestParseRefusesWhatItWouldLose(t *testing.T) {
	const head = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnetworking: {ipFamily: ipv4}\n"
	for name, text := range map[string]string{
		"unknown field":      head + "featureGates: {A: true}\n",
		"two control planes": head + "nodes: [{role: control-plane}, {role: control-plane}]\n",
		"two images":         head + "nodes: [{role: control-plane, image: a}, {role: worker, image: b}]\n",
		"another kind":       "kind: Topology\napiVersion: ambientlab.dev/v1alpha1\n",
		"a bad subnet":       strings.Replace(head, "ipv4", "ipv4, podSubnet: 10.0.0.0", 1),
	} {
		if o, err := parse([]byte(text)); err == nil {
			t.Errorf("%s: read as %+v", name, o)
		}
	}
}

func TestMountIsEachNodes(t *testing.T) {
	text, err := Cluster(ClusterOptions{Nodes: 2, Mount: "/some/where"})
	if err != nil {
		t.Fatal(err)
	}
	const want = "  extraMounts:\n  - hostPath: \"/some/where\"\n    containerPath: /ambientlab\n    readOnly: true\n"
	if n := strings.Count(string(text), want); n != 2 {
		t.Errorf("%d of 2 nodes have the mount:\n%s", n, text)
	}
}
