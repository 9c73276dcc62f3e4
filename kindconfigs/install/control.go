// SPDX-License-Identifier: Apache-2.0

package install

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

const (
	controlReadiness = 8080
	controlUser      = 1337 // upstream's

	// notReadyTaint is on nodes whose agent is not ready. Nothing in the control plane's pod waits for the agent.
	notReadyTaint = "cni.istio.io/not-ready"
)

var controlSelector = map[string]string{"app": ControlName}

func (o Options) control() []runtime.Object {
	all := intstr.FromInt32(1)
	evict := policyv1.AlwaysAllow
	return []runtime.Object{
		&corev1.Service{
			ObjectMeta: named(ControlName),
			Spec: corev1.ServiceSpec{
				Selector: controlSelector, IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack),
				Ports: []corev1.ServicePort{{
					Name: "https-dns", Port: int32(mesh.PortXDS), TargetPort: intstr.FromInt32(int32(mesh.PortXDS)), Protocol: corev1.ProtocolTCP,
				}},
			},
		},
		o.controlDeployment(),
		&policyv1.PodDisruptionBudget{
			ObjectMeta: named(ControlName),
			// Not "at least one": of a single replica that would stop every drain of its node.
			Spec: policyv1.PodDisruptionBudgetSpec{
				MaxUnavailable: &all, Selector: &metav1.LabelSelector{MatchLabels: controlSelector}, UnhealthyPodEvictionPolicy: &evict,
			},
		},
	}
}

func (o Options) controlDeployment() *appsv1.Deployment {
	surge, none := intstr.FromString("100%"), intstr.FromInt32(0)
	return &appsv1.Deployment{
		ObjectMeta: named(ControlName),
		Spec: appsv1.DeploymentSpec{
			Replicas: new(o.ControlReplicas), Selector: &metav1.LabelSelector{MatchLabels: controlSelector},
			Strategy: appsv1.DeploymentStrategy{
				Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &none},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: outside(controlSelector)},
				Spec: corev1.PodSpec{
					ServiceAccountName: ControlName, NodeSelector: map[string]string{corev1.LabelOSStable: "linux"},
					Tolerations: []corev1.Toleration{{Key: notReadyTaint, Operator: corev1.TolerationOpExists}},
					SecurityContext: &corev1.PodSecurityContext{
						RunAsNonRoot: new(true), RunAsUser: new(int64(controlUser)), RunAsGroup: new(int64(controlUser)),
						SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
					},
					Affinity:   apart(),
					Containers: []corev1.Container{o.controlContainer()},
					Volumes:    []corev1.Volume{scratch("tmp")},
				},
			},
		},
	}
}

func (o Options) controlContainer() corev1.Container {
	return corev1.Container{
		Name: "discovery", Image: o.Image, ImagePullPolicy: o.ImagePullPolicy,
		Command: []string{
			"control", "--in-cluster", "--cluster-id", o.ClusterID, "--network", o.Network, "--trust-domain", o.TrustDomain,
			"--cluster-domain", o.Domain, "--root-namespace", Namespace, "--trusted-accounts", Namespace + "/" + ZtunnelName, "--log-format", "json",
		},
		Env: o.env(DaemonControl, field("POD_NAME", "metadata.name")),
		Ports: []corev1.ContainerPort{
			{Name: "https-dns", ContainerPort: int32(mesh.PortXDS), Protocol: corev1.ProtocolTCP},
			{Name: "ready", ContainerPort: controlReadiness, Protocol: corev1.ProtocolTCP},
		},
		ReadinessProbe: ready("/ready", controlReadiness),
		Resources:      request("100m", "128Mi"),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: "tmp", MountPath: "/tmp"}},
	}
}

// apart spreads replicas over nodes where there are enough.
func apart() *corev1.Affinity {
	return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
			Weight: 100, PodAffinityTerm: corev1.PodAffinityTerm{
				LabelSelector: &metav1.LabelSelector{MatchLabels: controlSelector}, TopologyKey: corev1.LabelHostname,
			},
		}},
	}}
}
