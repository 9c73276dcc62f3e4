// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	networking "istio.io/api/networking/v1alpha3"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// A pod that is ready, and that its own node's proxy serves, is not yet known to other proxies, nor an object that was
// stored: each proxy hears of both from the control plane, in its own time. What follows waits for that. It needs the
// control plane and every proxy to be there and connected.

// tideSuffix ends the hosts of the service that Converge changes.
const tideSuffix = ".tide.test"

// Establish applies objects and returns once every proxy acts on them.
func (w *World) Establish(ctx context.Context, objs ...runtime.Object) error {
	if err := w.Apply(ctx, objs...); err != nil {
		return err
	}
	return w.Converge(ctx)
}

// Converge returns once every proxy acts on what was applied and deleted before. The control plane reads changes in their
// order and sends them to each proxy in their order, so that a proxy that knows the newest of all, which Converge makes
// itself, knows those before.
func (w *World) Converge(ctx context.Context) error {
	w.tides++
	tide := &istiov1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "tide"}}
	tide.SetGroupVersionKind(istiov1.SchemeGroupVersion.WithKind("ServiceEntry"))
	host := fmt.Sprintf("t%d%s", w.tides, tideSuffix)
	tide.Spec.Hosts, tide.Spec.Addresses, tide.Spec.Resolution = []string{host}, []string{"198.51.100.250"}, networking.ServiceEntry_STATIC
	tide.Spec.Ports = []*networking.ServicePort{{Number: 80, Name: "http", Protocol: "HTTP"}}
	if err := w.Lab.Apply(ctx, tide); err != nil {
		return err
	}
	err := w.everyProxy(ctx, func(d *admin.Dump) error {
		if slices.ContainsFunc(d.Services, func(s admin.Service) bool { return s.Hostname == host }) {
			return nil
		}
		return errors.New("it does not know the newest change")
	})
	if err != nil {
		return fmt.Errorf("wait for changes to reach every proxy: %w", err)
	}
	return nil
}

// Known returns once every proxy knows pods as they are now: addresses, whether they are in the mesh, whether they are
// ready.
func (w *World) Known(ctx context.Context, pods ...lab.PodInfo) error {
	for _, p := range pods {
		if err := w.everyProxy(ctx, func(d *admin.Dump) error { return knows(d, p) }); err != nil {
			return fmt.Errorf("wait for pod %s to be known: %w", p.PodRef, err)
		}
	}
	return nil
}

// Join starts a pod and returns it once it is ready, is in the mesh unless its labels keep it out, and every proxy knows it.
func (w *World) Join(ctx context.Context, p *corev1.Pod) (lab.PodInfo, error) {
	pods, err := w.JoinAll(ctx, p)
	if err != nil {
		return lab.PodInfo{}, err
	}
	return pods[0], nil
}

// JoinAll is Join for several at once.
func (w *World) JoinAll(ctx context.Context, pods ...*corev1.Pod) ([]lab.PodInfo, error) {
	objs := make([]runtime.Object, len(pods))
	for i, p := range pods {
		objs[i] = p
	}
	if err := w.Apply(ctx, objs...); err != nil {
		return nil, err
	}
	joined := make([]lab.PodInfo, len(pods))
	for i, p := range pods {
		out := p.Labels[mesh.LabelDataplaneMode] == mesh.ModeNone
		var err error
		joined[i], err = w.WaitPod(ctx, lab.PodRef{Namespace: p.Namespace, Name: p.Name}, func(p lab.PodInfo) bool { return p.Ready && (out || p.Enrolled) })
		if err != nil {
			return nil, err
		}
	}
	return joined, w.Known(ctx, joined...)
}

// everyProxy waits, within the budget for propagation, until each ztunnel's dump is right.
func (w *World) everyProxy(ctx context.Context, right func(*admin.Dump) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, node := range w.Nodes() {
		g.Go(func() error {
			err := Wait(ctx, Budget.Propagation, func(ctx context.Context) (bool, error) {
				d, err := w.ConfigDump(ctx, node)
				if err == nil {
					err = right(&d)
				}
				return err == nil, err
			})
			if err != nil {
				return fmt.Errorf("ztunnel of %s: %w", node, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// knows says what a proxy does not know of a pod, or knows wrong.
func knows(d *admin.Dump, p lab.PodInfo) error {
	var addrs []string
	for _, ip := range p.IPs {
		addrs = append(addrs, ip.String())
	}
	slices.Sort(addrs)
	uid := fmt.Sprintf("/Pod/%s/%s", p.Namespace, p.Name)
	for _, wl := range d.Workloads {
		if !strings.HasSuffix(wl.UID, uid) {
			continue
		}
		protocol, native := "TCP", p.Labels[mesh.LabelTunnel] != ""
		if p.Enrolled || native {
			protocol = "HBONE"
		}
		status := "Unhealthy"
		if p.Ready {
			status = "Healthy"
		}
		if got := slices.Sorted(slices.Values(wl.WorkloadIPs)); !slices.Equal(got, addrs) || wl.Protocol != protocol || wl.Status != status {
			return fmt.Errorf("it knows %s %s %v, not %s %s %v", wl.Protocol, wl.Status, got, protocol, status, addrs)
		}
		return nil
	}
	return errors.New("it does not know the pod")
}
