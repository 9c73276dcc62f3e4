// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WorkloadBinary is argv[0] of a pod that runs the workload binary; drivers see to it that the pod's PATH has it.
const WorkloadBinary = "workload"

func (c *Cluster) podObjects() []*corev1.Pod {
	var pods []*corev1.Pod
	for i := range c.Workloads {
		w := &c.Workloads[i]
		for r := range w.Replicas {
			pods = append(pods, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: w.Namespace, Name: w.PodName(r), Labels: maps.Clone(w.Labels), Annotations: maps.Clone(w.Annotations),
				},
				Spec: corev1.PodSpec{
					NodeName: w.Node(r), ServiceAccountName: w.ServiceAccount, Containers: []corev1.Container{w.container()},
				},
			})
		}
	}
	return pods
}

func (w *Workload) container() corev1.Container {
	ctr := corev1.Container{Name: WorkloadContainer, Image: "ambientlab/workload", Command: slices.Clone(w.Command)}
	if len(ctr.Command) == 0 {
		ctr.Command = append([]string{WorkloadBinary}, w.Serve.Args()...)
	}
	for _, l := range w.Serve.Listeners() {
		for _, p := range l.Ports {
			proto := corev1.ProtocolTCP
			if l.UDP {
				proto = corev1.ProtocolUDP
			}
			ctr.Ports = append(ctr.Ports, corev1.ContainerPort{ContainerPort: int32(p.Number), Protocol: proto})
		}
	}
	for _, f := range [][2]string{{"POD_NAME", "metadata.name"}, {"POD_NAMESPACE", "metadata.namespace"}, {"POD_IP", "status.podIP"}} {
		ctr.Env = append(ctr.Env, corev1.EnvVar{
			Name: f[0], ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: f[1]}},
		})
	}
	for _, k := range slices.Sorted(maps.Keys(w.Env)) {
		ctr.Env = append(ctr.Env, corev1.EnvVar{Name: k, Value: w.Env[k]})
	}
	if len(w.Capabilities.Add)+len(w.Capabilities.Drop) > 0 {
		ctr.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{
			Add: capabilities(w.Capabilities.Add), Drop: capabilities(w.Capabilities.Drop),
		}}
	}
	return ctr
}

func capabilities(names []string) []corev1.Capability {
	var out []corev1.Capability
	for _, n := range names {
		out = append(out, corev1.Capability(n))
	}
	return out
}
