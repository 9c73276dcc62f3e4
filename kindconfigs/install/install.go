// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Names of what is installed, all of them upstream's: the authority trusts the proxies by theirs, and people's tools look
// for the labels.
const (
	Namespace = "istio-system"

	ControlName = "istiod"         // Deployment, Service, ServiceAccount; label app
	ZtunnelName = "ztunnel"        // DaemonSet, ServiceAccount; label app
	AgentName   = "istio-cni-node" // DaemonSet; label k8s-app

	agentAccount  = "istio-cni"
	pluginAccount = "ambientlab-cni-plugin" // as cni-agent has it by default
)

// LabelPartOf marks every object that is installed; its value is PartOf.
const (
	LabelPartOf = "app.kubernetes.io/part-of"
	PartOf      = "ambientlab"
)

// Objects are all that a mesh needs on a cluster, in an order in which each object's references come before it. They say
// their apiVersion and kind. The same options give the same objects. ztunnel's DaemonSet is the last: kubelet starts its pods when
// the control plane has written ConfigMap istio-ca-root-cert, and looks for it ever more seldom. Who can wait for that before
// the last object is applied has a mesh seconds sooner.
func Objects(o Options) ([]runtime.Object, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("render installation: %w", err)
	}
	objs, err := definitions(o.CRDs)
	if err != nil {
		return nil, fmt.Errorf("render installation: %w", err)
	}
	objs = append(objs, namespace())
	objs = append(objs, access()...)
	objs = append(objs, o.control()...)
	objs = append(objs, o.agent(), o.ztunnel())
	var errs []error
	for _, obj := range objs {
		errs = append(errs, finish(obj))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("render installation: %w", err)
	}
	return objs, nil
}

var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, rbacv1.AddToScheme, policyv1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	return s
}()

// finish fills in what Go types know and files need, and the label.
func finish(obj runtime.Object) error {
	if obj.GetObjectKind().GroupVersionKind().Empty() {
		kinds, _, err := scheme.ObjectKinds(obj)
		if err != nil {
			return err
		}
		obj.GetObjectKind().SetGroupVersionKind(kinds[0])
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	maps.Copy(labels, m.GetLabels())
	labels[LabelPartOf] = PartOf
	m.SetLabels(labels)
	return nil
}

// namespace lets in the two DaemonSets, which no other level of pod security allows.
func namespace() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: Namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "privileged"},
	}}
}

func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: Namespace, Name: name} }

// outside are the labels of a pod that neither the mesh nor an injector must touch, and those that its owner selects it by.
func outside(selector map[string]string) map[string]string {
	labels := map[string]string{mesh.LabelDataplaneMode: mesh.ModeNone, "sidecar.istio.io/inject": "false", LabelPartOf: PartOf}
	maps.Copy(labels, selector)
	return labels
}

// everywhere tolerates every taint: a node without the mesh's parts is worse than a busy one.
func everywhere() []corev1.Toleration {
	return []corev1.Toleration{
		{Effect: corev1.TaintEffectNoSchedule, Operator: corev1.TolerationOpExists},
		{Effect: corev1.TaintEffectNoExecute, Operator: corev1.TolerationOpExists},
		{Key: "CriticalAddonsOnly", Operator: corev1.TolerationOpExists},
	}
}

const nodeCritical = "system-node-critical"

func hostPath(name, path string, kind corev1.HostPathType) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}}
}

func scratch(name string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
}
