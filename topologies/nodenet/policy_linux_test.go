// SPDX-License-Identifier: Apache-2.0

package nodenet_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/nodenet/policy"
)

// roles are the pods' labels in the tests of policies: node, pod, app.
var roles = map[[2]int]string{{0, 0}: "cart", {0, 1}: "web", {1, 0}: "far", {1, 1}: "spare"}

// police applies policies of namespace shop, each a name and a spec, to both nodes. Pods in leftOut are not known yet.
func (c *cluster) police(leftOut [][2]int, specs ...string) {
	c.t.Helper()
	conf := policy.Config{Namespaces: map[string]map[string]string{"shop": {"team": "a"}}}
	for i, s := range specs {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("p", i)}}
		if err := yaml.UnmarshalStrict([]byte(s), &np.Spec); err != nil {
			c.t.Fatal(err)
		}
		conf.Policies = append(conf.Policies, np)
	}
	for at, app := range roles {
		if len(leftOut) > 0 && leftOut[0] == at {
			continue
		}
		conf.Pods = append(conf.Pods, policy.Pod{
			Namespace: "shop", Name: app, Node: c.config[at[0]].Self.Name, Labels: map[string]string{"app": app},
			IPs: []netip.Addr{podAddr(at[0], at[1], false), podAddr(at[0], at[1], true)},
		})
	}
	for i, n := range c.nodes {
		conf.Node, conf.PodSubnets = c.config[i].Self.Name, c.config[i].Self.PodSubnets
		p := policy.NewPlan(conf)
		if _, err := policy.Apply(c.t.Context(), n, p); err != nil || len(p.Problems) > 0 {
			c.t.Fatal(err, p.Problems)
		}
	}
}

// refused checks that nothing answers: what a policy refuses is dropped.
func (c *cluster) refused(what string, from *netns.NS, to netip.AddrPort) {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.t.Context(), 100*time.Millisecond)
	defer stop()
	conn, err := from.DialTCP(ctx, to, netns.SocketOptions{})
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("%s: %s: %v, want a timeout", what, to, err)
	}
}

func (c *cluster) allowed(what string, from *netns.NS, to netip.AddrPort) {
	c.t.Helper()
	if _, err := get(c.t, from, to); err != nil {
		c.t.Errorf("%s: %s: %v", what, to, err)
	}
}

func TestPolicyOfWhatEnters(t *testing.T) {
	s := cart("shop/cart", [2]int{0, 0})
	c := newCluster(t, s)
	c.serve(c.pod(0, 0), 8080, "cart")
	c.serve(c.pod(0, 0), 8085, "cart")
	c.serve(c.pod(0, 0), 9090, "cart")
	c.serve(c.pod(1, 0), 8080, "far")
	c.police(nil, `{podSelector: {matchLabels: {app: cart}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080, endPort: 8085}]}]}`)
	for i, vip := range vips(s)[:2] {
		six := i == 1
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(podAddr(0, 0, six), port) }
		c.allowed("web at the range's beginning", c.pod(0, 1), at(8080))
		c.allowed("web at the range's end", c.pod(0, 1), at(8085))
		c.refused("web at another port", c.pod(0, 1), at(9090))
		c.refused("far", c.pod(1, 0), at(8080))
		c.refused("another node", c.nodes[1], at(8080))
		c.refused("a host outside", c.outside, at(8080))
		c.allowed("its own node, as kubelet does", c.nodes[0], at(9090))
		c.allowed("web by the service", c.pod(0, 1), vip)
		c.refused("far by the service, judged at the endpoint's port and address", c.pod(1, 0), vip)
		c.allowed("itself by the service", c.pod(0, 0), vip)
		c.allowed("what it calls itself", c.pod(0, 0), netip.AddrPortFrom(podAddr(1, 0, six), 8080))
	}
	c.police(nil)
	c.allowed("control: far, without a policy", c.pod(1, 0), netip.AddrPortFrom(podAddr(0, 0, false), 8080))
}

func TestPolicyOfWhatLeaves(t *testing.T) {
	c := newCluster(t)
	for _, at := range [][2]int{{0, 0}, {1, 0}} {
		c.serve(c.pod(at[0], at[1]), 8080, roles[at])
		c.serve(c.pod(at[0], at[1]), 9090, roles[at])
	}
	c.serve(c.outside, 80, "outside")
	c.serve(c.nodes[0], 53, "node")
	c.police(nil,
		`{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 8080}]}]}`,
		`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 9090}]}]}`)
	web := c.pod(0, 1)
	for i, six := range []bool{false, true} {
		c.allowed("by the first policy", web, netip.AddrPortFrom(podAddr(0, 0, six), 8080))
		c.allowed("by the second, on another node", web, netip.AddrPortFrom(podAddr(1, 0, six), 9090))
		c.refused("by neither", web, netip.AddrPortFrom(podAddr(1, 0, six), 8080))
		c.refused("out of the cluster", web, netip.AddrPortFrom(outside.Addresses[i], 80))
		c.allowed("its own node", web, netip.AddrPortFrom(node1.Addresses[i], 53))
		c.allowed("answers to those it lets in", c.nodes[1], netip.AddrPortFrom(podAddr(0, 0, six), 8080))
	}
}

// Connections that were let in go on when a policy comes to refuse their like, in both directions: where there are services,
// as in every cluster, the kernel has followed connections all along.
func TestPolicyLeavesEstablishedConnectionsAlone(t *testing.T) {
	c := newCluster(t, cart("shop/cart", [2]int{1, 0}))
	at := netip.AddrPortFrom(podAddr(1, 0, false), 8080)
	l, err := c.pod(1, 0).ListenTCP(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), 8080), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := c.pod(0, 0).DialTCP(t.Context(), at, netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c.police(nil, `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	c.refused("control: a new one", c.pod(0, 0), at)
	for _, way := range [][2]interface {
		Write([]byte) (int, error)
		Read([]byte) (int, error)
		SetDeadline(time.Time) error
	}{{client, server}, {server, client}} {
		way[1].SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := way[0].Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := way[1].Read(make([]byte, 1)); err != nil {
			t.Errorf("the established connection: %v", err)
		}
	}
}

func TestPolicyOfDatagrams(t *testing.T) {
	c := newCluster(t)
	c.serve(c.pod(0, 0), 5300, "cart")
	c.serve(c.pod(0, 0), 5301, "cart")
	c.police(nil, `{podSelector: {matchLabels: {app: cart}}, ingress: [{ports: [{protocol: UDP, port: 5300}]}]}`)
	for _, six := range []bool{false, true} {
		ask := func(port uint16, wait time.Duration) error {
			u, err := c.pod(1, 0).ListenUDP(t.Context(), netip.AddrPortFrom(podAddr(1, 0, six), 0), netns.SocketOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if _, err := u.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(podAddr(0, 0, six), port)); err != nil {
				t.Fatal(err)
			}
			u.SetReadDeadline(time.Now().Add(wait))
			_, _, err = u.ReadFromUDPAddrPort(make([]byte, 16))
			return err
		}
		if err := ask(5300, 5*time.Second); err != nil {
			t.Errorf("the port that is allowed: %v", err)
		}
		if err := ask(5301, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("another port: %v, want no answer", err)
		}
		c.refused("TCP at the same port", c.pod(1, 0), netip.AddrPortFrom(podAddr(0, 0, six), 5300))
	}
}

// A pod whose link is up before anybody knows of it is closed as soon as there is a policy at all.
func TestPolicyClosesNewPods(t *testing.T) {
	c := newCluster(t)
	c.serve(c.pod(0, 1), 8080, "web")
	elsewhere := `{podSelector: {matchLabels: {app: nobody}}}`
	c.police([][2]int{{0, 1}}, elsewhere)
	to := netip.AddrPortFrom(podAddr(0, 1, false), 8080)
	c.refused("before it is known", c.pod(1, 0), to)
	c.police(nil, elsewhere)
	c.allowed("control: once it is", c.pod(1, 0), to)
}
