// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// Host changes what the node itself does for kubelet's probes; HostKernel does it for real.
type Host interface {
	ApplyProbes(ctx context.Context, p capture.Probes) (changed bool, err error)
}

// HostKernel is the host's namespace, and its /proc, where kubelet is looked for.
type HostKernel struct {
	NS   *netns.NS
	Proc *ProcFinder
}

// ApplyProbes implements Host. The user is kubelet's, whoever p says; root's where there is no kubelet.
func (h HostKernel) ApplyProbes(ctx context.Context, p capture.Probes) (bool, error) {
	p.UID = h.Proc.KubeletUID()
	return capture.ApplyProbes(ctx, h.NS, p)
}

// RemoveProbes takes away what ApplyProbes has installed.
func (h HostKernel) RemoveProbes(ctx context.Context) error { return capture.RemoveProbes(ctx, h.NS) }

// kubelets are the programs that make probes; k3s and MicroK8s have kubelet in a program of another name.
var kubelets = []string{"kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"}

// KubeletUID is the user that kubelet runs as, 0 if there is none. Of programs of its name those in pods do not count.
func (f *ProcFinder) KubeletUID() uint32 {
	entries, err := os.ReadDir(f.proc)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		comm, err := os.ReadFile(f.proc + "/" + e.Name() + "/comm")
		if err != nil || !slices.Contains(kubelets, strings.TrimSpace(string(comm))) {
			continue
		}
		if cgroup, err := os.ReadFile(f.proc + "/" + e.Name() + "/cgroup"); err != nil || podOf(string(cgroup)) != "" {
			continue
		}
		if uid, err := ownerOf(f.proc + "/" + e.Name()); err == nil {
			return uid
		}
	}
	return 0
}

// probes is what the host was last made to do.
type probes struct {
	mu      sync.Mutex // held while the host is changed, so that the last state wins
	applied capture.Probes
	known   bool // applied is what the host has, unless somebody changed it
}

// syncProbes makes the host translate probes to all pods that are served; where that is so already, it looks at the host only if it
// is forced to.
func (a *Agent) syncProbes(ctx context.Context, force bool) (changed bool, err error) {
	if a.cfg.Host == nil {
		return false, nil
	}
	a.probes.mu.Lock()
	defer a.probes.mu.Unlock()
	want := a.wantedProbes()
	if !force && a.probes.known && maps.Equal(want.Pods, a.probes.applied.Pods) && slices.Equal(want.Unknown, a.probes.applied.Unknown) {
		return false, nil
	}
	changed, err = a.cfg.Host.ApplyProbes(ctx, want)
	a.probes.applied, a.probes.known = want, err == nil
	if err != nil {
		return false, fmt.Errorf("let probes pass: %w", err)
	}
	return changed, nil
}

func (a *Agent) wantedProbes() capture.Probes {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := capture.Probes{Pods: map[netip.Addr]string{}, Source: a.cfg.ProbeSource}
	for _, uid := range slices.Sorted(maps.Keys(a.pods)) {
		s := a.pods[uid]
		switch {
		case !s.served || s.leaving:
		case s.addrs == "":
			p.Unknown = append(p.Unknown, uid)
		default:
			for addr := range strings.SplitSeq(s.addrs, ",") {
				p.Pods[netip.MustParseAddr(addr)] = uid
			}
		}
	}
	return p
}

// checkProbes repairs what somebody did to the host.
func (a *Agent) checkProbes(ctx context.Context) {
	changed, err := a.syncProbes(ctx, true)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		a.cfg.Metrics.Drifted("probes", false)
		a.cfg.Log.Error("kubelet's probes may not reach pods", "error", err)
	case changed:
		a.cfg.Metrics.Drifted("probes", true)
		a.cfg.Log.Warn("the host's rule for probes drifted, repaired")
	}
}

// leave takes a pod that goes out of the host's set, before anything else is undone.
func (a *Agent) leave(ctx context.Context, uid string) error {
	if s, known := a.state(uid); known {
		s.leaving = true
		a.setState(uid, s)
	}
	_, err := a.syncProbes(ctx, false)
	return err
}

// addresses are what a plugin's result says of a pod, as a state has them.
func addresses(ips []ambient.AddIP) string {
	var out []netip.Addr
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a)
		}
	}
	return joined(out)
}

// addressesOf are what kubelet says of a pod.
func addressesOf(p *corev1.Pod) string {
	var out []netip.Addr
	for _, ip := range append(p.Status.PodIPs, corev1.PodIP{IP: p.Status.PodIP}) {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a)
		}
	}
	return joined(out)
}

func joined(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.Unmap().WithZone("").String())
	}
	slices.Sort(words)
	return strings.Join(slices.Compact(words), ",")
}
