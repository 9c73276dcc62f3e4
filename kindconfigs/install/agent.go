// SPDX-License-Identifier: Apache-2.0

package install

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	agentReadiness = 8000
	agentMetrics   = 15014
	agentGrace     = 30 // seconds: when it ends, it asks whether the plugin is to go too

	pluginSocketDir = "/var/run/istio-cni"
	hostProc        = "/host/proc"
	hostBin         = "/host/opt/cni/bin"
	hostConf        = "/host/etc/cni/net.d"
)

// agent enrols pods on every node. It works in the node's own network namespace, so that two of them could not listen side by
// side: an update replaces one after the other, and the plugin has new pods wait meanwhile.
func (o Options) agent() *appsv1.DaemonSet {
	selector := map[string]string{"k8s-app": AgentName}
	one := intstr.FromInt32(1)
	return &appsv1.DaemonSet{
		ObjectMeta: named(AgentName),
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &one},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: outside(selector), Annotations: scraped(agentMetrics)},
				Spec: corev1.PodSpec{
					ServiceAccountName: agentAccount, PriorityClassName: nodeCritical, NodeSelector: o.NodeSelector, Tolerations: everywhere(),
					HostNetwork: true, TerminationGracePeriodSeconds: new(int64(agentGrace)),
					Containers: []corev1.Container{o.agentContainer()},
					Volumes: []corev1.Volume{
						hostPath("cni-bin-dir", o.CNIBinDir, corev1.HostPathDirectoryOrCreate),
						hostPath("cni-net-dir", o.CNIConfDir, corev1.HostPathDirectoryOrCreate),
						hostPath("cni-socket-dir", pluginSocketDir, corev1.HostPathDirectoryOrCreate),
						hostPath("ztunnel-socket", ztunnelSocketDir, corev1.HostPathDirectoryOrCreate),
						hostPath("host-proc", "/proc", corev1.HostPathDirectory),
						scratch("tmp"),
					},
				},
			},
		},
	}
}

func (o Options) agentContainer() corev1.Container {
	privileges := asRoot("NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE")
	privileges.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined} // the default one forbids to look into others' /proc
	return corev1.Container{
		Name: "cni-agent", Image: o.Image, ImagePullPolicy: o.ImagePullPolicy,
		Command: []string{"cni-agent", "--in-cluster", "--cni-bin-dir", hostBin, "--cni-conf-dir", hostConf, "--host-proc", hostProc},
		Env: o.env(DaemonCNIAgent,
			set("DAEMONSET", AgentName), set("CNI_NET_DIR", o.CNIConfDir),
			field("NODE_NAME", "spec.nodeName"), field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")),
		Ports: []corev1.ContainerPort{
			{Name: "metrics", ContainerPort: agentMetrics, HostPort: agentMetrics, Protocol: corev1.ProtocolTCP},
			{Name: "readiness", ContainerPort: agentReadiness, HostPort: agentReadiness, Protocol: corev1.ProtocolTCP},
		},
		ReadinessProbe: ready("/readyz", agentReadiness),
		Resources:      request("50m", "64Mi"),
		// NET_ADMIN and NET_RAW for rules, SYS_PTRACE and SYS_ADMIN to find and enter pods' namespaces, DAC_OVERRIDE for
		// directories of the node that are not root's.
		SecurityContext: privileges,
		VolumeMounts: []corev1.VolumeMount{
			{Name: "cni-bin-dir", MountPath: hostBin},
			{Name: "cni-net-dir", MountPath: hostConf},
			{Name: "cni-socket-dir", MountPath: pluginSocketDir},
			{Name: "ztunnel-socket", MountPath: ztunnelSocketDir},
			{Name: "host-proc", MountPath: hostProc, ReadOnly: true},
			{Name: "tmp", MountPath: "/tmp"},
		},
	}
}
