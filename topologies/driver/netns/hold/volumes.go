// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"path"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
)

// rootConfigMap is what istiod keeps in every namespace: the mesh's root certificates.
const rootConfigMap = "istio-ca-root-cert"

// projectedToken is a service-account token that a pod's volume asks for; audience "" means the API server.
type projectedToken struct{ path, audience string }

// projectedTokens are those of the pod's projected volumes, wherever its container mounts them. Anybody who may make a
// pod may ask for any audience: so it is on Kubernetes.
func projectedTokens(p *corev1.Pod) []projectedToken {
	var out []projectedToken
	eachMount(p, func(v *corev1.Volume, mount string) {
		if v.Projected == nil {
			return
		}
		for _, s := range v.Projected.Sources {
			if t := s.ServiceAccountToken; t != nil {
				out = append(out, projectedToken{path: path.Join(mount, t.Path), audience: t.Audience})
			}
		}
	})
	return out
}

// volumeBinds are the mounts of the one ConfigMap that there is in a lab.
func (s *site) volumeBinds(p *pod) []pause.Bind {
	var out []pause.Bind
	eachMount(p.object(), func(v *corev1.Volume, mount string) {
		if v.ConfigMap != nil && v.ConfigMap.Name == rootConfigMap {
			out = append(out, pause.Bind{Source: s.dir.RootCert(), Target: mount, ReadOnly: true})
		}
	})
	return out
}

func eachMount(p *corev1.Pod, do func(v *corev1.Volume, mount string)) {
	for i := range p.Spec.Volumes {
		for c := range p.Spec.Containers {
			for _, m := range p.Spec.Containers[c].VolumeMounts {
				if m.Name == p.Spec.Volumes[i].Name {
					do(&p.Spec.Volumes[i], m.MountPath)
				}
			}
		}
	}
}
