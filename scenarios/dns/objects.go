// SPDX-License-Identifier: Apache-2.0

package dns

import (
	networking "istio.io/api/networking/v1alpha3"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// entryOf is a ServiceEntry in front of the pods of stock; without addresses it asks for one.
func entryOf(name, namespace string, hosts, addresses []string, change ...func(*networking.ServiceEntry)) *istiov1.ServiceEntry {
	e := &istiov1.ServiceEntry{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.istio.io/v1", Kind: "ServiceEntry"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
	}
	e.Spec.Hosts, e.Spec.Addresses, e.Spec.Resolution = hosts, addresses, networking.ServiceEntry_STATIC
	e.Spec.Ports = []*networking.ServicePort{{Number: 80, TargetPort: 8080, Name: "http", Protocol: "HTTP"}}
	e.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: map[string]string{"app": "stock"}}
	for _, c := range change {
		c(&e.Spec)
	}
	return e
}

func externalName(name, namespace, target string) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target},
	}
}
