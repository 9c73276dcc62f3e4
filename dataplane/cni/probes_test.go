// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// fakeHost writes down what it is asked for.
type fakeHost struct {
	*fakes
	err     error
	drifted bool
}

func (h *fakeHost) ApplyProbes(_ context.Context, p capture.Probes) (bool, error) {
	if err := h.get(&h.err); err != nil {
		h.add("host refused")
		return false, err
	}
	var addrs []string
	for _, a := range slices.SortedFunc(maps.Keys(p.Pods), netip.Addr.Compare) {
		addrs = append(addrs, a.String())
	}
	h.add("host %s unknown %s", strings.Join(addrs, " "), strings.Join(p.Unknown, " "))
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drifted, nil
}

func withHost(f *fakes) (Config, *fakeHost) {
	cfg, h := f.config(), &fakeHost{fakes: f}
	cfg.Host = h
	return cfg, h
}

func dual(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}} }

func TestTheHostComesAfterTheProxyAndGoesFirst(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"))
	cfg, _ := withHost(f)
	start(t, cfg)
	f.expect(t, "host  unknown ")
	f.set(pod("web", dual))
	f.expect(t, "apply 2", "add uid-web shop/web/web", "host 10.0.0.1 fd00::1 unknown ", "annotate uid-web enabled")
	f.set(pod("web", dual, func(p *corev1.Pod) { p.Labels["x"] = "y" })) // nothing that the host would care about
	f.set(pod("web", dual, func(p *corev1.Pod) { p.Labels[mesh.LabelDataplaneMode] = "none" }))
	f.expect(t, "host  unknown ", "remove", "del uid-web", "clear uid-web")
	f.set(pod("web", dual))
	f.expect(t, "apply 2", "add uid-web shop/web/web", "host 10.0.0.1 fd00::1 unknown ", "annotate uid-web enabled")
	f.set(pod("web", dual, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }))
	f.expect(t, "host  unknown ", "del uid-web", "clear uid-web")
	f.expectNothing(t)
}

// A pod that is about to start has its addresses from the plugin: kubelet has not told of any.
func TestAddressesOfAPodThatStarts(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web", starting))
	cfg, _ := withHost(f)
	_, socket := start(t, cfg)
	f.expect(t, "host  unknown ")
	req := admitWeb()
	for _, a := range []string{"10.0.0.5", "fd00::5"} {
		req.IPs = append(req.IPs, ambient.AddIP{Address: net.IPNet{IP: net.ParseIP(a), Mask: net.CIDRMask(24, 32)}})
	}
	if code, answer := post(t, socket, req); code != 200 {
		t.Fatal(code, answer)
	}
	f.expect(t, "apply 2", "add uid-web shop/web/web", "host 10.0.0.5 fd00::5 unknown ", "annotate uid-web enabled")
}

func TestAHostThatRefusesIsTriedAgain(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"))
	cfg, h := withHost(f)
	start(t, cfg)
	f.expect(t, "host  unknown ")
	f.fail(&h.err, errors.New("no nftables"))
	f.set(pod("web"))
	f.expect(t, "apply 2", "add uid-web shop/web/web", "host refused", "host refused")
	f.fail(&h.err, nil)
	f.await(t, "the annotation", func(events []string) bool { return slices.Contains(events, "annotate uid-web enabled") })
}

// After a restart a pod may have no address for a moment; what the host has for it must stay.
func TestAnAgentThatTakesOver(t *testing.T) {
	f := newFakes()
	bare := pod("bare", func(p *corev1.Pod) { p.Status.PodIP = "" })
	f.set(namespace("shop", "ambient"), pod("web"), bare)
	f.recorded[refOf(pod("web"))], f.recorded[refOf(bare)] = "enabled", "enabled"
	cfg, _ := withHost(f)
	start(t, cfg)
	f.await(t, "both pods", func(events []string) bool { return slices.Contains(events, "host 10.0.0.1 unknown uid-bare") })
	f.set(pod("bare", func(p *corev1.Pod) { p.Status.PodIP = "10.0.0.2" }))
	f.await(t, "its address", func(events []string) bool { return slices.Contains(events, "host 10.0.0.1 10.0.0.2 unknown ") })
}

func TestKubeletsUser(t *testing.T) {
	for name, tt := range map[string]struct {
		comm, cgroup string
		want         uint32
	}{
		"kubelet":                     {"kubelet", "0::/system.slice/kubelet.service", 7},
		"k3s":                         {"k3s-server", "0::/system.slice/k3s.service", 7},
		"an application of that name": {"kubelet", in(uidA), 0},
		"something else":              {"kubelet-wrapper", "0::/", 0},
	} {
		tr := newTree(t)
		tr.process(102, 102, "", tt.cgroup)
		dir := filepath.Join(tr.dir, "102")
		must(t, os.WriteFile(filepath.Join(dir, "comm"), []byte(tt.comm+"\n"), 0o644))
		if err := os.Chown(dir, 7, -1); err != nil {
			t.Skip("an ordinary user's namespace has one user: ", err)
		}
		if uid := NewProcFinder(tr.dir).KubeletUID(); uid != tt.want {
			t.Errorf("%s: %d, want %d", name, uid, tt.want)
		}
	}
}

// sourceHost and sourceRules write down where probes come from, for the host and for pods.
type sourceHost struct{ *fakes }

func (h sourceHost) ApplyProbes(_ context.Context, p capture.Probes) (bool, error) {
	h.add("host from %s and %s", p.Source.Of(capture.IPv4), p.Source.Of(capture.IPv6))
	return false, nil
}

type sourceRules struct{ fakeRules }

func (r sourceRules) Apply(_ context.Context, _ *netns.NS, p capture.Plan) (bool, error) {
	for _, m := range p.Tables[0].Prerouting[0].Matches {
		if m.Field == capture.Source {
			r.add("pod lets %s pass", m.Addr)
		}
	}
	return true, nil
}

// Whoever sets HOST_PROBE_SNAT_IP means both ends.
func TestHostAndPodsAgreeOnTheSourceOfProbes(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web", dual))
	cfg := f.config()
	cfg.Host, cfg.Rules = sourceHost{f}, sourceRules{fakeRules{f}}
	cfg.ProbeSource.V4 = netip.MustParseAddr("169.254.9.9")
	start(t, cfg)
	f.await(t, "both", func(events []string) bool {
		return slices.Contains(events, "host from 169.254.9.9 and "+mesh.ProbeSourceV6.String()) && slices.Contains(events, "pod lets 169.254.9.9 pass")
	})
}
