// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"net/netip"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// pods makes a workload of every pod that has an address and could still be called, in the mesh or not.
func (c *compiler) pods() {
	c.out.Workloads = make([]*mesh.Workload, 0, len(c.objects.Pods))
	c.podOf = make(map[string]*mesh.Workload, len(c.objects.Pods))
	for id, p := range c.objects.Pods {
		if terminated(p) {
			continue // Kubernetes keeps the object and its address, which may be another pod's by now
		}
		addrs := podAddresses(p)
		if len(addrs) == 0 {
			continue
		}
		w := &mesh.Workload{
			UID:  c.ClusterID + "//Pod/" + id,
			Name: p.Name, Namespace: p.Namespace, Addresses: addrs,
			ServiceAccount: p.Spec.ServiceAccountName,
			Node:           p.Spec.NodeName,
			Locality:       locality(c.objects.Nodes[p.Spec.NodeName]),
			Network:        c.networkOf(p),
			Status:         podHealth(p),
			Capacity:       1,

			AuthorizationPolicies: c.guards.of(p.Namespace, p.Labels),
		}
		if p.Spec.HostNetwork {
			w.NetworkMode = mesh.NetworkHost
		}
		w.WorkloadName, w.Type = owner(p)
		w.CanonicalName, w.CanonicalRevision = canonical(p.Labels, w.WorkloadName)
		setTunnel(w, p)
		for _, b := range c.selecting.of(p.Namespace, p.Labels) {
			w.Services = append(w.Services, b.member(func(name string) (uint16, bool) { return containerPort(p, name) }, b.entry))
		}
		if c.add("Pod", p, w) {
			c.podOf[id] = w
		}
	}
}

// networkOf is the network that a pod names, else its node; "" is the cluster's.
func (c *compiler) networkOf(p *corev1.Pod) string {
	if n := p.Labels[mesh.LabelNetwork]; n != "" {
		return n
	}
	if node := c.objects.Nodes[p.Spec.NodeName]; node != nil {
		return node.Labels[mesh.LabelNetwork]
	}
	return ""
}

func terminated(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func podAddresses(p *corev1.Pod) []netip.Addr {
	ips := p.Status.PodIPs
	if len(ips) == 0 {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	out := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// podHealth is Kubernetes' rule for endpoints: ready, and not on the way out.
func podHealth(p *corev1.Pod) mesh.Health {
	if p.DeletionTimestamp != nil {
		return mesh.Unhealthy
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
			return mesh.Healthy
		}
	}
	return mesh.Unhealthy
}

func containerPort(p *corev1.Pod, name string) (uint16, bool) {
	for _, ctr := range p.Spec.Containers {
		for _, port := range ctr.Ports {
			if port.Name == name && (port.Protocol == "" || port.Protocol == corev1.ProtocolTCP) {
				return uint16(port.ContainerPort), true
			}
		}
	}
	return 0, false
}

// setTunnel marks what speaks HBONE: what the agent has captured, and what says that it does so itself.
func setTunnel(w *mesh.Workload, o metav1.Object) {
	if o.GetAnnotations()[mesh.AnnotationRedirection] == mesh.RedirectionEnabled {
		w.Tunnel = mesh.TunnelHBONE
	}
	if o.GetLabels()[mesh.LabelTunnel] == "http" {
		w.Tunnel, w.NativeTunnel = mesh.TunnelHBONE, true
	}
}

// cronJob is what the CronJob controller names its jobs: the name and the minute that it is due.
var cronJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// owner names what people deployed: they know a Deployment, not the ReplicaSet between it and the pod.
func owner(p *corev1.Pod) (string, mesh.WorkloadType) {
	name, kind := p.Name, mesh.Pod
	if ref := metav1.GetControllerOf(p); ref != nil {
		name = ref.Name
		switch ref.Kind {
		case "ReplicaSet":
			if hash := p.Labels["pod-template-hash"]; hash != "" && strings.HasSuffix(name, "-"+hash) {
				name, kind = strings.TrimSuffix(name, "-"+hash), mesh.Deployment
			}
		case "Job":
			kind = mesh.Job
			if m := cronJob.FindStringSubmatch(name); m != nil {
				name, kind = m[1], mesh.CronJob
			}
		}
	}
	return cmp.Or(p.Labels["service.istio.io/workload-name"], name), kind
}

// canonical is the service and revision that telemetry names a workload by.
func canonical(labels map[string]string, workload string) (name, revision string) {
	name = cmp.Or(labels["service.istio.io/canonical-name"], labels["app.kubernetes.io/name"], labels["app"], workload)
	revision = cmp.Or(labels["service.istio.io/canonical-revision"], labels["app.kubernetes.io/version"], labels["version"], "latest")
	return name, revision
}
