// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/dataplane/control/cluster"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// workload is what DaemonSets and Deployments have in common.
type workload struct {
	name     string
	selector *metav1.LabelSelector
	template *corev1.PodTemplateSpec
}

func workloads(objs []runtime.Object) (out []workload) {
	for _, obj := range objs {
		switch o := obj.(type) {
		case *appsv1.DaemonSet:
			out = append(out, workload{o.Name, o.Spec.Selector, &o.Spec.Template})
		case *appsv1.Deployment:
			out = append(out, workload{o.Name, o.Spec.Selector, &o.Spec.Template})
		}
	}
	return out
}

func TestEveryObjectSaysWhatItIs(t *testing.T) {
	seen := map[string]bool{}
	for _, obj := range objects(t, Options{}) {
		m, err := meta.Accessor(obj)
		if err != nil {
			t.Fatal(err)
		}
		gvk := obj.GetObjectKind().GroupVersionKind()
		id := fmt.Sprint(gvk, m.GetNamespace(), "/", m.GetName())
		if gvk.Version == "" || gvk.Kind == "" || m.GetName() == "" || seen[id] {
			t.Errorf("%s: no kind, no name, or twice", id)
		}
		seen[id] = true
		if m.GetLabels()[LabelPartOf] != PartOf {
			t.Errorf("%s: labels %v", id, m.GetLabels())
		}
	}
}

func TestSelectorsMatchTemplates(t *testing.T) {
	objs := objects(t, Options{})
	all := workloads(objs)
	if len(all) != 3 {
		t.Fatalf("%d workloads, want 3", len(all))
	}
	for _, w := range all {
		for _, other := range all {
			if got := matches(t, w.selector, other.template); got != (w.name == other.name) {
				t.Errorf("%s selects %s: %v", w.name, other.name, got)
			}
		}
	}
	control := find[*appsv1.Deployment](t, objs, ControlName)
	service := find[*corev1.Service](t, objs, ControlName)
	budget := find[*policyv1.PodDisruptionBudget](t, objs, ControlName)
	for _, s := range []*metav1.LabelSelector{{MatchLabels: service.Spec.Selector}, budget.Spec.Selector} {
		if !matches(t, s, &control.Spec.Template) {
			t.Errorf("%v selects no control plane", s)
		}
	}
	for _, p := range service.Spec.Ports {
		if !slices.ContainsFunc(control.Spec.Template.Spec.Containers[0].Ports, func(c corev1.ContainerPort) bool { return c.ContainerPort == p.TargetPort.IntVal }) {
			t.Errorf("the service's port %s leads nowhere", p.Name)
		}
	}
}

func matches(t *testing.T, s *metav1.LabelSelector, template *corev1.PodTemplateSpec) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return selector.Matches(labels.Set(template.Labels))
}

func TestVolumesAndAccountsAreThere(t *testing.T) {
	objs := objects(t, everything())
	for _, w := range workloads(objs) {
		find[*corev1.ServiceAccount](t, objs, w.template.Spec.ServiceAccountName)
		mounted := map[string]bool{}
		for _, c := range w.template.Spec.Containers {
			for _, m := range c.VolumeMounts {
				mounted[m.Name] = true
			}
			if c.Image != everything().Image || c.ImagePullPolicy != everything().ImagePullPolicy {
				t.Errorf("%s: image %s, %s", w.name, c.Image, c.ImagePullPolicy)
			}
		}
		volumes := map[string]bool{}
		for _, v := range w.template.Spec.Volumes {
			volumes[v.Name] = true
		}
		if diff := cmp.Diff(volumes, mounted); diff != "" {
			t.Errorf("%s: volumes and mounts differ:\n%s", w.name, diff)
		}
	}
	for _, obj := range objs {
		if b, ok := obj.(*rbacv1.ClusterRoleBinding); ok {
			find[*rbacv1.ClusterRole](t, objs, b.RoleRef.Name)
			find[*corev1.ServiceAccount](t, objs, b.Subjects[0].Name)
		}
	}
}

// What upstream's charts ask for, and no more: a mesh is not entitled to a node.
func TestPrivileges(t *testing.T) {
	objs := objects(t, Options{})
	want := map[string][]corev1.Capability{
		ZtunnelName: {"NET_ADMIN", "SYS_ADMIN", "NET_RAW"},
		AgentName:   {"NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE"},
		ControlName: nil,
	}
	for _, w := range workloads(objs) {
		sc := w.template.Spec.Containers[0].SecurityContext
		if !cmp.Equal(sc.Capabilities.Add, want[w.name]) || !cmp.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: capabilities %+v, want %v alone", w.name, sc.Capabilities, want[w.name])
		}
		if (sc.Privileged != nil && *sc.Privileged) || !*sc.ReadOnlyRootFilesystem {
			t.Errorf("%s: privileged, or its root may be written to", w.name)
		}
		if w.template.Spec.HostNetwork != (w.name == AgentName) || w.template.Spec.HostPID || w.template.Spec.HostIPC {
			t.Errorf("%s: namespaces of the host", w.name)
		}
	}
}

// rules are what roles allow, "verb group/resource[/subresource][=name]".
func rules(rs []rbacv1.PolicyRule) (out []string) {
	for _, r := range rs {
		for _, verb := range r.Verbs {
			for _, resource := range r.Resources {
				out = append(out, fmt.Sprintf("%s %s/%s", verb, r.APIGroups[0], resource)+suffix(r.ResourceNames))
			}
		}
	}
	slices.Sort(out)
	return out
}

func suffix(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "=" + strings.Join(names, ",")
}

// A new right needs a line here, and a reason.
func TestRights(t *testing.T) {
	objs := objects(t, Options{})
	for name, c := range map[string]struct {
		got  []rbacv1.PolicyRule
		want []string
	}{
		"control, everywhere": {find[*rbacv1.ClusterRole](t, objs, controlRole).Rules, []string{
			"create /configmaps=istio-ca-root-cert", "create authentication.k8s.io/tokenreviews", "get /services",
			"get security.istio.io/authorizationpolicies", "get security.istio.io/peerauthentications",
			"list /configmaps=istio-ca-root-cert", "list /namespaces", "list /nodes", "list /pods", "list /serviceaccounts", "list /services",
			"list discovery.k8s.io/endpointslices", "list networking.istio.io/serviceentries", "list networking.istio.io/workloadentries",
			"list security.istio.io/authorizationpolicies", "list security.istio.io/peerauthentications",
			"patch /configmaps=istio-ca-root-cert", "patch /services/status", "patch security.istio.io/authorizationpolicies/status",
			"patch security.istio.io/peerauthentications/status",
			"watch /configmaps=istio-ca-root-cert", "watch /namespaces", "watch /nodes", "watch /pods", "watch /serviceaccounts", "watch /services",
			"watch discovery.k8s.io/endpointslices", "watch networking.istio.io/serviceentries", "watch networking.istio.io/workloadentries",
			"watch security.istio.io/authorizationpolicies", "watch security.istio.io/peerauthentications",
		}},
		"control, in istio-system": {find[*rbacv1.Role](t, objs, controlRole).Rules, []string{
			"create /secrets", "create coordination.k8s.io/leases", "get /secrets=istio-ca-secret", "get coordination.k8s.io/leases=ambientlab-control-writer",
			"list /secrets=istio-ca-secret", "update /secrets=istio-ca-secret", "update coordination.k8s.io/leases=ambientlab-control-writer",
			"watch /secrets=istio-ca-secret",
		}},
		"agent": {find[*rbacv1.ClusterRole](t, objs, agentRole).Rules, []string{
			"get /namespaces", "get /nodes", "get /pods", "get apps/daemonsets=istio-cni-node", "list /namespaces", "list /nodes", "list /pods",
			"patch /nodes", "patch /pods/status", "watch /namespaces", "watch /nodes", "watch /pods",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, rules(c.got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What the control plane calls its objects, the roles must call them too.
func TestNamesAreThoseOfTheControlPlane(t *testing.T) {
	for got, want := range map[string]string{caSecret: cluster.SecretName, writerLease: cluster.LeaseName, rootsConfigMap: cluster.ConfigMapName} {
		if got != want {
			t.Errorf("%q, but the control plane says %q", got, want)
		}
	}
}

// Every kind that the control plane reads is either built into Kubernetes, or installed.
func TestDefinitions(t *testing.T) {
	defined := map[string]bool{}
	for _, obj := range objects(t, Options{CRDs: CRDsIstio}) {
		if u, ok := obj.(*unstructured.Unstructured); ok {
			kind, _, _ := unstructured.NestedString(u.Object, "spec", "names", "kind")
			group, _, _ := unstructured.NestedString(u.Object, "spec", "group")
			versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
			for _, v := range versions {
				defined[group+"/"+v.(map[string]any)["name"].(string)+" "+kind] = true
			}
		}
	}
	for _, k := range source.Kinds() {
		if strings.Contains(k.Versions[0], ".istio.io/") && !defined[k.Versions[0]+" "+k.Name] {
			t.Errorf("no definition of %s %s", k.Versions[0], k.Name)
		}
	}
	count := func(which CRDs) (n int) {
		for _, obj := range objects(t, Options{CRDs: which}) {
			if _, ok := obj.(*unstructured.Unstructured); ok {
				n++
			}
		}
		return n
	}
	if all, istio, none := count(CRDsAll), count(CRDsIstio), count(CRDsNone); all != 9 || istio != 4 || none != 0 {
		t.Errorf("%d, %d and %d definitions, want 9, 4 and 0", all, istio, none)
	}
}
