// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

func TestCutRules(t *testing.T) {
	n := corev1.Node{
		Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.2.0/24", "fd00:10:244:2::/64"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: "172.18.0.3"}, {Type: corev1.NodeInternalIP, Address: "fc00:f853::3"}, {Type: corev1.NodeHostName, Address: "c-worker2"},
		}},
	}
	want := `table inet ambientlab_cut_2c0a6b7e
delete table inet ambientlab_cut_2c0a6b7e
table inet ambientlab_cut_2c0a6b7e {
  chain in {
    type filter hook prerouting priority -450; policy accept;
    ip saddr 172.18.0.3/32 tcp dport { 6443, 10250 } accept
    ip saddr 172.18.0.3/32 tcp sport { 6443, 10250 } accept
    ip saddr 172.18.0.3/32 drop
    ip6 saddr fc00:f853::3/128 tcp dport { 6443, 10250 } accept
    ip6 saddr fc00:f853::3/128 tcp sport { 6443, 10250 } accept
    ip6 saddr fc00:f853::3/128 drop
    ip saddr 10.244.2.0/24 drop
    ip6 saddr fd00:10:244:2::/64 drop
  }
}
`
	if diff := cmp.Diff(want, cutRules(cut{"node1", "node2"}, sources(n))); diff != "" {
		t.Error(diff)
	}
}

func TestRulesOfALinkToTheAPIServer(t *testing.T) {
	c := cut{lab.DaemonAPIServer, "node2"}
	s := &stand{apiService: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:10:96::1")}}
	want := map[string]string{"node2": `table inet ambientlab_cut_TABLE
delete table inet ambientlab_cut_TABLE
table inet ambientlab_cut_TABLE {
  chain output {
    type filter hook output priority -300; policy accept;
    ip daddr 10.96.0.1 tcp dport 443 drop
    ip6 daddr fd00:10:96::1 tcp dport 443 drop
  }
  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    ip daddr 10.96.0.1 tcp dport 443 drop
    ip6 daddr fd00:10:96::1 tcp dport 443 drop
  }
  chain input {
    type filter hook input priority 150; policy accept;
    ip saddr 10.96.0.1 tcp sport 443 drop
    ip6 saddr fd00:10:96::1 tcp sport 443 drop
  }
  chain postrouting {
    type filter hook postrouting priority 150; policy accept;
    ip saddr 10.96.0.1 tcp sport 443 drop
    ip6 saddr fd00:10:96::1 tcp sport 443 drop
  }
}
`}
	got := s.rules(c)
	got["node2"] = strings.ReplaceAll(got["node2"], cutTable(c), "ambientlab_cut_TABLE")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSocketsReadLikeOtherDrivers(t *testing.T) {
	in := "tcp   LISTEN 0 4096 *:15008 *:* ino:1\ntcp   ESTAB  0 0 [::ffff:10.244.1.2]:44000 [::ffff:10.244.2.3]:15008\ntcp   LISTEN 0 1 0.0.0.0:80 0.0.0.0:*\n"
	want := "tcp   LISTEN 0 4096 [::]:15008 [::]:* ino:1\ntcp   ESTAB  0 0 10.244.1.2:44000 10.244.2.3:15008\ntcp   LISTEN 0 1 0.0.0.0:80 0.0.0.0:*\n"
	if diff := cmp.Diff(want, sockets(in)); diff != "" {
		t.Error(diff)
	}
}

func TestRefusedPackets(t *testing.T) {
	const rules = `table inet ambientlab-networkpolicy {
	chain shop/cart/ingress {
		ip saddr @ingress/shop/cart/0/ip counter packets 7 bytes 420 accept comment "shop/cart, ingress rule 1"
		counter packets 3 bytes 180 drop comment "not allowed by shop/cart"
	}

	chain shop/web/ingress {
		counter packets 0 bytes 0 drop comment "not allowed by shop/web"
	}
}
table ip other {
	chain c {
		counter packets 9 bytes 9 drop comment "somebody's"
	}
}
`
	want := []string{"shop/cart/ingress: NetworkPolicy dropped 3 packets, not allowed by shop/cart"}
	if diff := cmp.Diff(want, refused(rules)); diff != "" {
		t.Error(diff)
	}
}
