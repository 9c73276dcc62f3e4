// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

const (
	ztunnelGrace = 30 // seconds: what a drain may take, with a margin below Kubernetes' kill
	tokenTTL     = 12 * 60 * 60

	ztunnelSocketDir = "/var/run/ztunnel"
	rootsDir         = "/var/run/secrets/istio"
	tokenDir         = "/var/run/secrets/tokens"
	rootsConfigMap   = "istio-ca-root-cert"
	tokenAudience    = "istio-ca"
)

// ztunnel is the proxy on every node. A new one comes up beside the old one, which then drains: nobody is without.
func (o Options) ztunnel() *appsv1.DaemonSet {
	selector := map[string]string{"app": ZtunnelName}
	labels := outside(selector)
	labels[mesh.LabelTunnel] = "http" // it speaks HBONE for itself, so that its metrics can be scraped through a tunnel
	one, none := intstr.FromInt32(1), intstr.FromInt32(0)
	return &appsv1.DaemonSet{
		ObjectMeta: named(ZtunnelName),
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &one, MaxUnavailable: &none},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: scraped(mesh.PortMetrics)},
				Spec: corev1.PodSpec{
					ServiceAccountName: ZtunnelName, PriorityClassName: nodeCritical, NodeSelector: o.NodeSelector, Tolerations: everywhere(),
					AutomountServiceAccountToken: new(false), TerminationGracePeriodSeconds: new(int64(ztunnelGrace)),
					Containers: []corev1.Container{o.ztunnelContainer()},
					Volumes: []corev1.Volume{
						hostPath("ztunnel-socket", ztunnelSocketDir, corev1.HostPathDirectoryOrCreate),
						roots("istiod-ca-cert"), token("istio-token"), scratch("tmp"),
					},
				},
			},
		},
	}
}

func (o Options) ztunnelContainer() corev1.Container {
	return corev1.Container{
		Name: ZtunnelName, Image: o.Image, ImagePullPolicy: o.ImagePullPolicy,
		Command: []string{"ztunnel", "proxy", "ztunnel"}, Env: o.ztunnelEnv(),
		Ports:           []corev1.ContainerPort{{Name: "ztunnel-stats", ContainerPort: int32(mesh.PortMetrics), Protocol: corev1.ProtocolTCP}},
		ReadinessProbe:  ready("/healthz/ready", mesh.PortReadiness),
		Resources:       request("100m", "64Mi"),
		SecurityContext: asRoot("NET_ADMIN", "SYS_ADMIN", "NET_RAW"),
		VolumeMounts: []corev1.VolumeMount{
			{Name: "ztunnel-socket", MountPath: ztunnelSocketDir},
			{Name: "istiod-ca-cert", MountPath: rootsDir, ReadOnly: true},
			{Name: "istio-token", MountPath: tokenDir, ReadOnly: true},
			{Name: "tmp", MountPath: "/tmp"},
		},
	}
}

// ztunnelEnv is what upstream's chart sets, under the same names.
func (o Options) ztunnelEnv() []corev1.EnvVar {
	server := fmt.Sprintf("https://%s.%s.svc:%d", ControlName, Namespace, mesh.PortXDS)
	return o.env(DaemonZtunnel,
		set("CA_ADDRESS", server), set("XDS_ADDRESS", server),
		set("CLUSTER_ID", o.ClusterID), set("NETWORK", o.Network), set("CLUSTER_DOMAIN", o.Domain),
		set("LOG_FORMAT", "json"), set("TERMINATION_GRACE_PERIOD_SECONDS", strconv.Itoa(ztunnelGrace)),
		field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("NODE_NAME", "spec.nodeName"),
		field("INSTANCE_IP", "status.podIP"), field("SERVICE_ACCOUNT", "spec.serviceAccountName"))
}

// roots is a volume with whom the mesh trusts. The control plane writes the ConfigMap; pods wait for it.
func roots(name string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: rootsConfigMap}},
	}}
}

// token is a volume with a token that the authority accepts.
func token(name string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: tokenAudience, ExpirationSeconds: new(int64(tokenTTL)), Path: "istio-token",
		}}},
	}}}
}

// asRoot is user 0 with nothing but the named capabilities.
func asRoot(capabilities ...corev1.Capability) *corev1.SecurityContext {
	return &corev1.SecurityContext{
		Privileged: new(false), AllowPrivilegeEscalation: new(true), // Kubernetes refuses false together with SYS_ADMIN
		ReadOnlyRootFilesystem: new(true), RunAsNonRoot: new(false), RunAsUser: new(int64), RunAsGroup: new(int64),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: capabilities},
	}
}

// ready asks often, as a rolling update waits for the answer.
func ready(path string, port uint16) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(int32(port))}},
		PeriodSeconds: 1, TimeoutSeconds: 2,
	}
}

func scraped(port uint16) map[string]string {
	return map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": strconv.Itoa(int(port))}
}

func request(cpu, memory string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory),
	}}
}
