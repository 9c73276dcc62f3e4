// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// downWithin bounds what is removed after an error.
const downWithin = 2 * time.Minute

// rootsConfigMap is what the control plane puts into every namespace.
const rootsConfigMap = "istio-ca-root-cert"

// Down implements lab.Driver.
func (d *Driver) Down(ctx context.Context) error {
	d.mu.Lock()
	s := d.stand
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	if err := s.down(ctx); err != nil {
		return fmt.Errorf("take down lab %s: %w", s.name, err)
	}
	d.mu.Lock()
	d.stand = nil
	d.mu.Unlock()
	return nil
}

// down removes workloads while the mesh still stands, since a node's agent has a part in the end of a pod; then the mesh, and
// last what belongs to the cluster as a whole.
func (s *stand) down(ctx context.Context) error {
	s.say("taking the lab down")
	errs := []error{s.restoreAll(ctx)}
	s.forwards.close()
	errs = append(errs, s.sweep(ctx, s.name))
	s.hangUp()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.say("the lab is down")
	return os.RemoveAll(s.dir)
}

// hangUp ends what this process has running for the lab.
func (s *stand) hangUp() {
	s.forwards.close()
	if s.ownConnections {
		s.connections.Close()
	} else {
		s.connections.endCommands()
	}
	s.logs.close()
	if s.pods != nil {
		s.pods.close()
	}
}

// Leave ends this process's part in a lab that stands on: connections (but for idle ones that are Options.Connections), watches and its
// files of this host. The driver's methods fail from then on, as after Down.
func (d *Driver) Leave() error {
	d.mu.Lock()
	s := d.stand
	d.stand = nil
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.leave()
}

func (s *stand) leave() error {
	s.hangUp()
	return os.RemoveAll(s.dir)
}

// sweep deletes what has a lab's label, whoever made it.
func (s *stand) sweep(ctx context.Context, of string) error {
	kinds, err := s.api.kinds()
	if err != nil {
		return err
	}
	all, err := s.api.find(ctx, kinds, LabelLab+"="+of)
	if err != nil {
		return err
	}
	is := func(o *found, group, kind string) bool { return o.kind.Group == group && o.kind.Kind == kind }
	for i, step := range []func(o *found) bool{
		func(o *found) bool {
			return is(o, "", "Pod") || is(o, "", "Namespace") && o.name != systemNamespace
		},
		func(o *found) bool { return is(o, "apps", "DaemonSet") || is(o, "apps", "Deployment") },
		func(o *found) bool { return !is(o, kindCRD.Group, kindCRD.Kind) },
		func(*found) bool { return true },
	} {
		var now, later []*found
		for _, o := range all {
			if step(o) {
				now = append(now, o)
			} else {
				later = append(later, o)
			}
		}
		background := func(*found) metav1.DeletionPropagation { return metav1.DeletePropagationBackground }
		if err := s.end(ctx, now, background); err != nil {
			return err
		}
		if i == 1 { // before what the daemons may do is taken from them
			if err := s.awaitNoMesh(ctx); err != nil {
				return err
			}
		}
		all = later
	}
	return errors.Join(s.leaveGuests(ctx, kinds, of), s.removeRoots(ctx), s.api.unlabel(ctx))
}

// end deletes objects and waits until they are gone.
func (s *stand) end(ctx context.Context, list []*found, propagation func(*found) metav1.DeletionPropagation) error {
	if err := s.deleteAll(ctx, list, propagation); err != nil {
		return err
	}
	return s.awaitGone(ctx, list)
}

// deleteAll deletes objects, which are about to go then.
func (s *stand) deleteAll(ctx context.Context, list []*found, propagation func(*found) metav1.DeletionPropagation) error {
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, o := range list {
		g.Go(func() error {
			how := propagation(o)
			err := o.at.Delete(each, o.name, metav1.DeleteOptions{PropagationPolicy: &how})
			if unlessGone(err) != nil {
				return fmt.Errorf("delete %s: %w", o.what, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// awaitGone waits until objects of labs are gone. It asks for all of a kind at once, as there may be thousands.
func (s *stand) awaitGone(ctx context.Context, list []*found) error {
	type group struct {
		kind served
		lab  string
	}
	left := map[group]map[types.UID]string{}
	for _, o := range list {
		k := group{o.served, o.object.GetLabels()[LabelLab]}
		if left[k] == nil {
			left[k] = map[types.UID]string{}
		}
		left[k][o.object.GetUID()] = o.what
	}
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for k, were := range left {
		g.Go(func() error {
			return poll(each, func() (string, bool) {
				now, err := s.api.find(each, []served{k.kind}, LabelLab+"="+k.lab)
				if err != nil {
					return err.Error(), false
				}
				for _, o := range now {
					if what := were[o.object.GetUID()]; what != "" {
						return what + " does not go", false
					}
				}
				return "", true
			})
		})
	}
	return g.Wait()
}

// awaitNoMesh waits until the daemons' pods are gone, whose DaemonSets and Deployment are.
func (s *stand) awaitNoMesh(ctx context.Context) error {
	if s.pods == nil {
		return nil
	}
	if err := s.hastenDaemons(ctx); err != nil {
		return err
	}
	return s.pods.await(ctx, func() (string, bool) {
		left := s.pods.list(func(p *corev1.Pod) bool { return p.Namespace == systemNamespace })
		if len(left) == 0 {
			return "", true
		}
		return fmt.Sprintf("pod %s does not go", refOf(left[0])), false
	})
}

// hastenDaemons shortens the end of the mesh's pods, which have nobody to serve any more. The agents take the time that they
// need to leave their nodes.
func (s *stand) hastenDaemons(ctx context.Context) error {
	var errs []error
	for _, k := range s.fleet.keys() {
		if k.daemon == lab.DaemonCNIAgent {
			continue
		}
		for _, p := range s.fleet.pods(k) {
			grace := graceSeconds
			err := s.api.core.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace})
			errs = append(errs, unlessGone(err))
		}
	}
	return errors.Join(errs...)
}

// leaveGuests takes a lab's fields out of what was there before it.
func (s *stand) leaveGuests(ctx context.Context, kinds []served, of string) error {
	guests, err := s.api.find(ctx, kinds, LabelGuest+"="+of)
	errs := []error{err}
	for _, o := range guests {
		bare := &unstructured.Unstructured{}
		bare.SetGroupVersionKind(o.kind)
		bare.SetName(o.name)
		_, err := o.at.Apply(ctx, o.name, bare, metav1.ApplyOptions{FieldManager: manager, Force: true})
		if unlessGone(err) != nil {
			errs = append(errs, fmt.Errorf("restore %s: %w", o.what, err))
		}
	}
	return errors.Join(errs...)
}

// removeRoots deletes what the control plane has put into the cluster's own namespaces.
func (s *stand) removeRoots(ctx context.Context) error {
	var list corev1.NamespaceList
	if err := s.api.res.List(ctx, &list); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	var errs []error
	for _, ns := range list.Items {
		err := s.api.res.Delete(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: rootsConfigMap}})
		errs = append(errs, unlessGone(err))
	}
	return errors.Join(errs...)
}
