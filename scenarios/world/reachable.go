// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// reachable waits, within the budget for propagation, until a pod outside the mesh on each node that has one reaches every
// service. A cluster's nodes translate a service's address by themselves, and learn of its pods later than those are ready.
func (w *World) reachable(ctx context.Context) error {
	from := map[string]lab.PodInfo{}
	for _, p := range w.pods {
		if p.Namespace != "istio-system" && p.Namespace != "kube-system" && !p.Enrolled {
			from[p.Node] = p
		}
	}
	g, each := errgroup.WithContext(ctx)
	for _, p := range from {
		g.Go(func() error {
			for _, url := range w.serviceURLs() {
				for _, family := range w.families() {
					if err := w.answers(each, p.PodRef, url, family); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (w *World) answers(ctx context.Context, from lab.PodRef, url string, family int) error {
	err := Wait(ctx, Budget.Propagation, func(ctx context.Context) (bool, error) {
		res, err := w.Call(ctx, from, url, workload.Options{Family: family, Timeout: Budget.Call})
		if err != nil {
			return false, err
		}
		first := res.First()
		return first.OK, fmt.Errorf("%s %s", first.Class, first.Error)
	})
	if err != nil {
		return fmt.Errorf("wait until %s reaches %s over IPv%d: %w", from, url, family, err)
	}
	return nil
}

// serviceURLs has one for each service with an address that speaks HTTP.
func (w *World) serviceURLs() (urls []string) {
	for _, s := range w.Spec.Clusters[0].Services {
		at := slices.IndexFunc(s.Ports, func(p topologies.ServicePort) bool { return p.AppProtocol == "http" })
		if at >= 0 && !s.Headless && len(s.Selector) > 0 {
			urls = append(urls, fmt.Sprintf("http://%s.%s:%d", s.Name, s.Namespace, s.Ports[at].Port))
		}
	}
	return urls
}

// families are those of the lab's services that its driver has, as workload.Options numbers them.
func (w *World) families() (list []int) {
	family := w.Spec.Clusters[0].IPFamily
	if w.caps.Has(lab.CapIPv4) && family.Has4() {
		list = append(list, 4)
	}
	if w.caps.Has(lab.CapIPv6) && family.Has6() {
		list = append(list, 6)
	}
	return list
}
