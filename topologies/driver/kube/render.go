// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies"
)

const (
	systemNamespace = "istio-system"
	imagePrefix     = "ambientlab/" // of what the topology's rendering names; no registry has it
)

// graceSeconds is how long a workload may take to end: it has nothing to finish, and scenarios wait for it.
const graceSeconds = int64(1)

// parts are the objects of a topology, by what becomes of them.
type parts struct {
	nodes   []*corev1.Node
	objects []runtime.Object // in the order in which they are applied
	pods    []*corev1.Pod    // the last of objects
}

// split sorts what a topology renders to: what a cluster has by itself and what package install makes is left out.
func split(spec *topologies.Spec) (*parts, error) {
	all, err := spec.Objects(spec.Clusters[0].Name)
	if err != nil {
		return nil, err
	}
	p := &parts{}
	provided := map[string]bool{} // services that the cluster has, by namespace and name
	for _, o := range all {
		switch o := o.(type) {
		case *corev1.Node:
			p.nodes = append(p.nodes, o)
			continue
		case *corev1.Service:
			if o.Labels[topologies.LabelProvidedBy] != "" {
				provided[o.Namespace+"/"+o.Name] = true
			}
		}
		if !isProvided(o, provided) && !isMesh(o) {
			p.objects = append(p.objects, o)
			if pod, ok := o.(*corev1.Pod); ok {
				p.pods = append(p.pods, pod)
			}
		}
	}
	return p, nil
}

// isProvided reports whether a cluster has o by itself. Endpoints of such a service are the cluster's too.
func isProvided(o runtime.Object, services map[string]bool) bool {
	m, ok := o.(source.Object)
	if !ok {
		return false
	}
	if m.GetLabels()[topologies.LabelProvidedBy] == "cluster" {
		return true
	}
	_, slice := o.(*discoveryv1.EndpointSlice)
	return slice && services[m.GetNamespace()+"/"+m.GetLabels()[discoveryv1.LabelServiceName]]
}

// isMesh reports whether o is of the mesh itself.
func isMesh(o runtime.Object) bool {
	switch o := o.(type) {
	case *corev1.Namespace:
		return o.Name == systemNamespace
	case *corev1.Pod:
		return o.Namespace == systemNamespace && len(o.Spec.Containers) > 0 && len(o.Spec.Containers[0].Command) == 0
	case *corev1.Service:
		return o.Namespace == systemNamespace && o.Name == "istiod"
	case *corev1.ServiceAccount:
		return o.Namespace == systemNamespace && (o.Name == "istiod" || o.Name == "ztunnel")
	}
	return false
}

// kindOf is an object's kind, which one made in Go often does not say.
func kindOf(o runtime.Object) (schema.GroupVersionKind, error) {
	if k := o.GetObjectKind().GroupVersionKind(); !k.Empty() {
		return k, nil
	}
	for _, k := range source.Kinds() {
		if reflect.TypeOf(k.New()) == reflect.TypeOf(o) {
			return schema.FromAPIVersionAndKind(k.Versions[0], k.Name), nil
		}
	}
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil || len(kinds) == 0 {
		return schema.GroupVersionKind{}, fmt.Errorf("%T says no apiVersion and kind", o)
	}
	return kinds[0], nil
}

// document is an object as the API server takes it: with its kind, and without what Go makes of fields that are not set.
func document(o runtime.Object) (*unstructured.Unstructured, error) {
	kind, err := kindOf(o)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind.Kind, err)
	}
	u := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal(data, &u.Object); err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind.Kind, err)
	}
	u.SetGroupVersionKind(kind)
	delete(u.Object, "status")
	for _, field := range []string{"creationTimestamp", "managedFields", "resourceVersion", "uid", "generation"} {
		unstructured.RemoveNestedField(u.Object, "metadata", field)
	}
	if u.GetName() == "" {
		return nil, fmt.Errorf("%s has no name", kind.Kind)
	}
	return u, nil
}

// name is an object for messages.
func name(u *unstructured.Unstructured) string {
	return u.GetKind() + " " + strings.TrimPrefix(u.GetNamespace()+"/"+u.GetName(), "/")
}

// fit makes a pod of a topology one of the cluster.
func (s *stand) fit(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	p.Spec.NodeName = s.nodes.cluster(p.Spec.NodeName)
	if p.Spec.NodeName == "" {
		p.Spec.NodeName = s.nodes.cluster(s.nodes.order[0])
	}
	if p.Spec.TerminationGracePeriodSeconds == nil {
		grace := graceSeconds
		p.Spec.TerminationGracePeriodSeconds = &grace
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if strings.HasPrefix(list[i].Image, imagePrefix) {
				list[i].Image, list[i].ImagePullPolicy = s.image, corev1.PullIfNotPresent
			}
		}
	}
	return p
}

// fitService leaves out the addresses of families that the cluster's services do not have, and all of them where the cluster
// allocates from other subnets than the topology: it then chooses itself.
func (s *stand) fitService(svc *corev1.Service) *corev1.Service {
	if len(svc.Spec.ClusterIPs) == 0 || svc.Spec.ClusterIP == corev1.ClusterIPNone || len(s.serviceSubnets) == 0 {
		return svc
	}
	within := func(text string) bool {
		ip, err := netip.ParseAddr(text)
		return err == nil && slices.ContainsFunc(s.serviceSubnets, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	fits := slices.DeleteFunc(slices.Clone(svc.Spec.ClusterIPs), func(ip string) bool { return !within(ip) })
	if len(fits) == len(svc.Spec.ClusterIPs) {
		return svc
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(fits) == 0 && len(svc.Spec.ClusterIPs) > 1 {
		policy = corev1.IPFamilyPolicyPreferDualStack
	}
	svc = svc.DeepCopy()
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs, svc.Spec.IPFamilies, svc.Spec.IPFamilyPolicy = "", fits, nil, &policy
	if len(fits) > 0 {
		svc.Spec.ClusterIP = fits[0]
	}
	return svc
}

// fitTemplate does to the pods of a controller what fit does to a pod.
func (s *stand) fitTemplate(o runtime.Object) runtime.Object {
	o = o.DeepCopyObject()
	var t *corev1.PodTemplateSpec
	switch c := o.(type) {
	case *appsv1.Deployment:
		t = &c.Spec.Template
	case *appsv1.StatefulSet:
		t = &c.Spec.Template
	case *appsv1.DaemonSet:
		t = &c.Spec.Template
	case *batchv1.Job:
		t = &c.Spec.Template
	case *batchv1.CronJob:
		t = &c.Spec.JobTemplate.Spec.Template
	default:
		return o
	}
	p := s.fit(&corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec})
	t.Spec = p.Spec
	t.Spec.NodeName = "" // the scheduler's to choose
	return o
}
