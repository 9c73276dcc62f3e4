// SPDX-License-Identifier: Apache-2.0

package install

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Names of what may be written: whoever else's objects of the same kinds stay theirs.
const (
	caSecret    = "istio-ca-secret"
	writerLease = "ambientlab-control-writer"
)

const (
	controlRole = "ambientlab-control"
	agentRole   = "ambientlab-cni-agent"
	pluginRole  = "ambientlab-cni-plugin"
)

// access is accounts and what they may do. ztunnel's may do nothing: it asks the control plane alone.
func access() []runtime.Object {
	control := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: Namespace, Name: ControlName}
	agent := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: Namespace, Name: agentAccount}
	plugin := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: Namespace, Name: pluginAccount}
	return []runtime.Object{
		&corev1.ServiceAccount{ObjectMeta: named(ControlName)},
		&corev1.ServiceAccount{ObjectMeta: named(ZtunnelName)},
		&corev1.ServiceAccount{ObjectMeta: named(agentAccount)},
		&corev1.ServiceAccount{ObjectMeta: named(pluginAccount)},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: controlRole}, Rules: controlRules()},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: agentRole}, Rules: agentRules()},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: pluginRole}, Rules: []rbacv1.PolicyRule{may("get", "", "namespaces pods")}},
		&rbacv1.Role{ObjectMeta: named(controlRole), Rules: controlOwnRules()},
		&rbacv1.Role{ObjectMeta: named(agentRole), Rules: agentOwnRules()},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: controlRole}, Subjects: []rbacv1.Subject{control},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: controlRole},
		},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: agentRole}, Subjects: []rbacv1.Subject{agent},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: agentRole},
		},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: pluginRole}, Subjects: []rbacv1.Subject{plugin},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: pluginRole},
		},
		&rbacv1.RoleBinding{
			ObjectMeta: named(controlRole), Subjects: []rbacv1.Subject{control},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: controlRole},
		},
		&rbacv1.RoleBinding{
			ObjectMeta: named(agentRole), Subjects: []rbacv1.Subject{agent},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: agentRole},
		},
	}
}

// controlRules: it reads what the mesh is made of, says what it made of policies and services, asks whose a token is, and
// puts the roots into every namespace.
func controlRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		may("list watch", "", "namespaces nodes pods serviceaccounts services"),
		may("list watch", "discovery.k8s.io", "endpointslices"),
		may("list watch", "networking.istio.io", "serviceentries workloadentries"),
		may("list watch", "security.istio.io", "authorizationpolicies peerauthentications"),
		// A condition is written on top of what the object says now.
		may("get", "", "services"),
		may("get", "security.istio.io", "authorizationpolicies peerauthentications"),
		may("patch", "", "services/status"),
		may("patch", "security.istio.io", "authorizationpolicies/status peerauthentications/status"),
		may("create", "authentication.k8s.io", "tokenreviews"),
		may("list watch create patch", "", "configmaps", rootsConfigMap),
	}
}

// controlOwnRules hold in the mesh's own namespace. Nobody can be kept to a name that is only being given: hence the second
// rule of each pair.
func controlOwnRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		may("get list watch update", "", "secrets", caSecret),
		may("create", "", "secrets"),
		may("get update", "coordination.k8s.io", "leases", writerLease),
		may("create", "coordination.k8s.io", "leases"),
	}
}

// agentRules: it reads pods and their namespaces, notes on a pod that it is captured, and takes away its node's taint.
func agentRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		may("get list watch", "", "namespaces nodes pods"),
		may("patch", "", "pods/status"),
		may("patch", "", "nodes"),
		may("get", "apps", "daemonsets", AgentName), // whether it is being updated or removed
	}
}

// may is a rule: verbs and resources are separated by spaces, and names narrow it to objects of those names.
func may(verbs, group, resources string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{
		Verbs: strings.Fields(verbs), APIGroups: []string{group}, Resources: strings.Fields(resources), ResourceNames: names,
	}
}

// agentOwnRules: it gives the plugin tokens, which outlive the agent's pod, of an account that may but read what a pod's network needs.
func agentOwnRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{may("create", "", "serviceaccounts/token", pluginAccount)}
}
