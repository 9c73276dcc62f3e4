// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/kindconfigs/install"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Labels of nodes. labelMember, with the value member, is on those that have the mesh; labelNode has the topology's name.
const (
	labelMember = prefixOwn + "member"
	labelNode   = prefixOwn + "node"

	member = "true" // whichever lab it is, so that one that takes another's mesh over has its daemons
)

// atOnce bounds requests that do not depend on each other.
const atOnce = 8

// excludedNamespaces are never enrolled, whatever their labels: the agent and the plugin are installed so.
var excludedNamespaces = []string{"kube-system"}

// kindCRD is that of definitions of custom resources.
var kindCRD = schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}

// look reads what Up needs to know of a cluster.
func (s *stand) look(ctx context.Context, o Options) error {
	if err := s.api.allowed(ctx, o.Force); err != nil {
		return err
	}
	var list corev1.NodeList
	if err := s.api.res.List(ctx, &list); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	var err error
	if s.nodes, err = assign(list.Items, s.cluster.Nodes, o.Nodes); err != nil {
		return err
	}
	for _, n := range list.Items {
		if _, is := n.Labels[labelControlPlane]; is {
			s.controlPlane = append(s.controlPlane, n.Name)
		}
	}
	var service corev1.Service
	if err := s.api.res.Get(ctx, "kubernetes", metav1.NamespaceDefault, &service); err != nil {
		return fmt.Errorf("look for the API server's service: %w", err)
	}
	for _, text := range service.Spec.ClusterIPs {
		if ip, err := netip.ParseAddr(text); err == nil {
			s.apiService = append(s.apiService, ip)
		}
	}
	var subnets networkingv1.ServiceCIDRList // clusters before 1.33 do not tell
	if err := s.api.res.List(ctx, &subnets); err == nil {
		for _, item := range subnets.Items {
			for _, text := range item.Spec.CIDRs {
				if p, err := netip.ParsePrefix(text); err == nil {
					s.serviceSubnets = append(s.serviceSubnets, p)
				}
			}
		}
	}
	return nil
}

// vacant refuses a cluster that has a mesh, unless that is parked.
func (s *stand) vacant(ctx context.Context) (was parked, err error) {
	var system corev1.Namespace
	switch err := s.api.res.Get(ctx, systemNamespace, "", &system); {
	case apierrors.IsNotFound(err):
	case err != nil:
		return was, fmt.Errorf("look for a mesh: %w", err)
	case system.Labels[LabelLab] != "" && system.Labels[labelParked] != "":
		was = parked{system.Labels[LabelLab], system.Labels[labelParked], parseKinds(system.Annotations[annotationKinds])}
	case system.Labels[LabelLab] != "":
		return was, fmt.Errorf("%w: %s on this cluster: take it down first", lab.ErrOccupied, system.Labels[LabelLab])
	default:
		return was, fmt.Errorf("the cluster has a namespace %s that no lab made: remove the mesh in it first", systemNamespace)
	}
	return was, nil
}

// up makes everything. What it made by the time of an error is Down's to find.
func (s *stand) up(ctx context.Context, was parked, env map[string][]string) error {
	p, err := split(s.spec)
	if err != nil {
		return err
	}
	if was.name != "" {
		s.logs.since = time.Now().Format(time.RFC3339Nano)
	}
	if s.pods, err = watchPods(ctx, s.api.core, s.logs.changed); err != nil {
		return err
	}
	s.connections.forget(s.pods)
	var have stock
	if was.name != "" {
		if have, err = s.takeUp(ctx, was, p); err != nil {
			return err
		}
	}
	if err := s.labelNodes(ctx, p.nodes); err != nil {
		return err
	}
	if err := s.install(ctx, env, have); err != nil {
		return fmt.Errorf("install the mesh: %w", err)
	}
	s.say(fmt.Sprintf("applying the topology: %d objects", len(p.objects)))
	record, err := s.record()
	if err != nil {
		return err
	}
	objs := slices.Insert(slices.Clone(p.objects), len(p.objects)-len(p.pods), runtime.Object(record))
	if err := inOrder(ctx, objs, func(ctx context.Context, o runtime.Object) error { return s.supply(ctx, have, o) }); err != nil {
		return err
	}
	s.say(fmt.Sprintf("waiting for %d pods to be ready, and for those in the mesh to be enrolled", len(p.pods)))
	return s.awaitPods(ctx, p.pods)
}

func (s *stand) labelNodes(ctx context.Context, list []*corev1.Node) error {
	for _, n := range list {
		labels := topologyLabels(n)
		labels[labelMember], labels[labelNode] = member, n.Name
		if err := s.api.labelOnly(ctx, s.nodes.cluster(n.Name), labels); err != nil {
			return err
		}
	}
	return nil
}

// install makes the mesh and waits for it.
func (s *stand) install(ctx context.Context, env map[string][]string, have stock) error {
	objs, err := install.Objects(s.installation(env))
	if err != nil {
		return err
	}
	began := time.Now()
	s.say(fmt.Sprintf("installing the mesh: %d objects", len(objs)))
	if err := s.storeAll(ctx, objs, have); err != nil {
		return err
	}
	if err := s.fleet.load(ctx); err != nil {
		return err
	}
	s.say("waiting for the control plane, and for ztunnel and the CNI agent on every node")
	if err := s.fleet.renew(ctx); err != nil {
		return err
	}
	if err := s.fleet.awaitAll(ctx); err != nil {
		return err
	}
	s.say(fmt.Sprintf("the mesh is installed, in %.1f s", time.Since(began).Seconds()))
	return nil
}

// daemonEnv is what a topology and its caller want daemons to be told.
func (s *stand) daemonEnv(env map[string][]string) map[string][]string {
	out := map[string][]string{}
	for _, n := range s.nodes.at {
		if len(n.Spec.PodCIDRs) > 0 && !slices.ContainsFunc(n.Spec.PodCIDRs, func(p string) bool { return strings.Contains(p, ":") }) {
			out[lab.DaemonZtunnel] = []string{"IPV6_ENABLED=false"}
		}
	}
	for name, vars := range env {
		out[name] = append(out[name], vars...)
	}
	return out
}

// storeAll applies those of the mesh's objects that are not in stock: first the namespaces and definitions that others need, and
// ztunnel when what it mounts is there.
func (s *stand) storeAll(ctx context.Context, objs []runtime.Object, have stock) error {
	var first, rest, last []*unstructured.Unstructured
	for _, o := range objs {
		s.fleet.adapt(o)
		u, err := document(o)
		if err == nil {
			err = sign(u)
		}
		if err != nil {
			return err
		}
		if have.has(u) && (u.GetKind() != kindCRD.Kind || established(have[name(u)])) {
			continue
		}
		switch kind := u.GroupVersionKind(); {
		case kind.Kind == "Namespace" || kind.GroupKind() == kindCRD.GroupKind():
			first = append(first, u)
		case kind.Kind == "DaemonSet" && u.GetName() == install.ZtunnelName:
			last = append(last, u)
		default:
			rest = append(rest, u)
		}
	}
	for i, list := range [][]*unstructured.Unstructured{first, rest, last} {
		if i == 2 && len(list) > 0 { // kubelet would try again after longer and longer rests
			if err := s.awaitRoots(ctx); err != nil {
				return err
			}
		}
		if err := s.storeAlike(ctx, list); err != nil {
			return err
		}
	}
	return nil
}

// storeAlike applies objects that do not depend on each other, and waits until the API server serves the kinds that they define.
func (s *stand) storeAlike(ctx context.Context, list []*unstructured.Unstructured) error {
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, u := range list {
		g.Go(func() error {
			var err error
			if u.GetKind() == kindCRD.Kind {
				err = s.define(each, u)
			} else {
				err = s.store(each, u, false)
			}
			if err != nil {
				return fmt.Errorf("apply %s: %w", name(u), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// awaitRoots waits for what the control plane writes when it runs.
func (s *stand) awaitRoots(ctx context.Context) error {
	return poll(ctx, func() (string, bool) {
		err := s.api.res.Get(ctx, rootsConfigMap, systemNamespace, &corev1.ConfigMap{})
		late := s.pods.problem(s.fleet.pod(key{"", lab.DaemonControl}))
		return fmt.Sprintf("the control plane has not written the mesh's roots: %v: %s", err, late), err == nil
	})
}

// define applies a definition and waits until the API server serves its kind.
func (s *stand) define(ctx context.Context, u *unstructured.Unstructured) error {
	r, err := s.api.resource(kindCRD, "")
	if err != nil {
		return err
	}
	if err := s.store(ctx, u, true); err != nil {
		return err
	}
	defer s.api.mapper.Reset()
	return poll(ctx, func() (string, bool) {
		now, err := r.Get(ctx, u.GetName(), metav1.GetOptions{})
		return fmt.Sprintf("wait for %s to be established: %v", name(u), err), err == nil && established(now)
	})
}

func established(crd *unstructured.Unstructured) bool {
	list, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	return slices.ContainsFunc(list, func(c any) bool {
		m, _ := c.(map[string]any)
		return m["type"] == "Established" && m["status"] == "True"
	})
}

// poll looks at a condition again and again. why completes the error if ctx ends before it is true.
func poll(ctx context.Context, ok func() (why string, done bool)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		why, done := ok()
		if done {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", why, context.Cause(ctx))
		}
	}
}

// awaitPods waits until pods are ready, and enrolled if they are to be.
func (s *stand) awaitPods(ctx context.Context, pods []*corev1.Pod) error {
	spaces := map[string]map[string]string{}
	for _, n := range s.cluster.Namespaces {
		spaces[n.Name] = n.Labels
	}
	return s.pods.await(ctx, func() (string, bool) {
		var late []error
		for _, p := range pods {
			now := s.pods.get(refOf(p))
			switch {
			case now == nil:
				late = append(late, fmt.Errorf("pod %s is gone", refOf(p)))
			case !podReady(now):
				late = append(late, fmt.Errorf("pod %s is not ready: %s", refOf(p), s.pods.problem(now)))
			case meshed(p, spaces[p.Namespace]) && now.Annotations[mesh.AnnotationRedirection] != mesh.RedirectionEnabled:
				late = append(late, fmt.Errorf("pod %s is not enrolled", refOf(p)))
			}
		}
		if len(late) == 0 {
			return "", true
		}
		return errors.Join(late...).Error(), false
	})
}

// meshed reports whether a pod's labels, or its namespace's, enrol it.
func meshed(p *corev1.Pod, namespace map[string]string) bool {
	return ambient.Decide(ambient.Pod{
		Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations, HostNetwork: p.Spec.HostNetwork,
	}, namespace, excludedNamespaces).Enrol
}

// ours reports whether the lab made a pod.
func (s *stand) ours(p *corev1.Pod) bool { return p.Labels[LabelLab] == s.name }
