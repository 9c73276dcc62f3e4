// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

// lastApplied is kubectl's own copy of the whole object.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// strip drops what nobody here reads: of a pod that is most of it.
func strip(o any) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
		if a := m.GetAnnotations(); a[lastApplied] != "" {
			delete(a, lastApplied)
			m.SetAnnotations(a)
		}
	}
	switch o := o.(type) {
	case *corev1.Pod:
		stripPod(o)
	case *corev1.Node:
		o.Status.Images, o.Status.VolumesAttached, o.Status.VolumesInUse = nil, nil, nil
		o.Status.Capacity, o.Status.Allocatable = nil, nil
	case *corev1.ServiceAccount:
		o.Secrets, o.ImagePullSecrets = nil, nil
	}
}

func stripPod(p *corev1.Pod) {
	s := &p.Spec
	s.Volumes, s.Affinity, s.Tolerations, s.TopologySpreadConstraints = nil, nil, nil, nil
	s.EphemeralContainers, s.ImagePullSecrets, s.Overhead, s.ReadinessGates = nil, nil, nil, nil
	for _, list := range [...][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range list {
			c := &list[i]
			// Kept: names and ports, probes and who a container runs as, which decide about capture.
			*c = corev1.Container{
				Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy, SecurityContext: c.SecurityContext,
				LivenessProbe: c.LivenessProbe, ReadinessProbe: c.ReadinessProbe, StartupProbe: c.StartupProbe,
			}
		}
	}
	p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses = nil, nil, nil
	p.Status.ResourceClaimStatuses = nil
}

// decode makes the object that source/file would make. Those of built-in kinds have their type; the server itself holds
// them to it, and one of a newer version than we know is no reason to refuse them.
func (t *table) decode(o any) (source.Object, []source.Problem) {
	strip(o)
	if u, ok := o.(*unstructured.Unstructured); ok {
		return decodeCustom(t.kind, u)
	}
	obj, ok := o.(source.Object)
	if !ok {
		return nil, []source.Problem{{Err: fmt.Errorf("a %T is not what is read", o)}}
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(t.kind.Versions[0], t.kind.Name))
	var problems []source.Problem
	for _, bad := range t.kind.Check(obj) {
		problems = append(problems, source.Problem{Field: bad.Field, Err: bad.Err})
	}
	return obj, problems
}

// metadata are the fields that are read of it; a server may have others.
var metadata = []string{
	"name", "namespace", "uid", "resourceVersion", "generation", "labels", "annotations", "creationTimestamp", "deletionTimestamp", "ownerReferences",
}

// decodeCustom is strict about a spec, since a field that is not known may be the one that narrows a policy. A status is
// taken as it is: others write to it as well, and nothing that it says is enforced.
func decodeCustom(kind source.Kind, u *unstructured.Unstructured) (source.Object, []source.Problem) {
	meta := map[string]any{}
	if have, ok := u.Object["metadata"].(map[string]any); ok {
		for name, v := range have {
			if slices.Contains(metadata, name) {
				meta[name] = v
			}
		}
	}
	doc := map[string]any{"apiVersion": u.GetAPIVersion(), "kind": kind.Name, "metadata": meta}
	if spec, ok := u.Object["spec"]; ok {
		doc["spec"] = spec
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, []source.Problem{{Err: fmt.Errorf("read object: %w", err)}}
	}
	obj, problems := file.Decode(data)
	if len(problems) > 0 {
		return nil, problems
	}
	part := kind.New()
	if data, err = json.Marshal(map[string]any{"status": u.Object["status"]}); err == nil && json.Unmarshal(data, part) == nil {
		obj = kind.Merge(obj, []source.Object{part})
	}
	return obj, nil
}
