// SPDX-License-Identifier: Apache-2.0

package install

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Names of daemons in Options.DaemonEnv.
const (
	DaemonZtunnel  = "ztunnel"
	DaemonCNIAgent = "cni-agent"
	DaemonControl  = "control"
)

// DefaultImage is what containers run where Options name no image.
const DefaultImage = "ambientlab.dev/mesh:latest"

// Options are what may differ between installations. The zero value is good.
type Options struct {
	Image           string            // "" means DefaultImage; package image says what it must hold
	ImagePullPolicy corev1.PullPolicy // "" means IfNotPresent: the image is loaded into the nodes

	ClusterID   string // "" means Kubernetes
	Network     string // the network of the cluster's addresses
	TrustDomain string // "" means cluster.local
	Domain      string // DNS domain of services; "" means cluster.local

	// DaemonEnv adds environment variables, "NAME=value", to daemons by name. One that is set anyway is replaced.
	DaemonEnv map[string][]string
	// ControlReplicas is the number of control planes; 0 means 1.
	ControlReplicas int32
	// NodeSelector says on which nodes pods can be in the mesh; nil means on all that run Linux.
	NodeSelector map[string]string

	CNIBinDir  string // where the node's container runtime looks for plugins; "" means /opt/cni/bin
	CNIConfDir string // where it looks for their configuration; "" means /etc/cni/net.d

	CRDs CRDs
}

// CRDs says which definitions of custom resources are part of an installation.
type CRDs uint8

// Choices of definitions.
const (
	CRDsAll   CRDs = iota // Istio's that the control plane reads, and those of the Gateway API that gateways and routes are declared with
	CRDsIstio             // Istio's alone: the Gateway API is there already, as on many managed clusters
	CRDsNone              // somebody else installs them
)

func (o Options) withDefaults() Options {
	o.Image = cmp.Or(o.Image, DefaultImage)
	o.ImagePullPolicy = cmp.Or(o.ImagePullPolicy, corev1.PullIfNotPresent)
	o.ClusterID = cmp.Or(o.ClusterID, "Kubernetes")
	o.TrustDomain = cmp.Or(o.TrustDomain, mesh.DefaultTrustDomain)
	o.Domain = cmp.Or(o.Domain, "cluster.local")
	o.ControlReplicas = cmp.Or(o.ControlReplicas, 1)
	o.CNIBinDir = cmp.Or(o.CNIBinDir, "/opt/cni/bin")
	o.CNIConfDir = cmp.Or(o.CNIConfDir, "/etc/cni/net.d")
	if o.NodeSelector == nil {
		o.NodeSelector = map[string]string{corev1.LabelOSStable: "linux"}
	}
	return o
}

// validate reports every mistake at once.
func (o Options) validate() error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	policies := []corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}
	bad(!slices.Contains(policies, o.ImagePullPolicy), "ImagePullPolicy %q: want one of %v", o.ImagePullPolicy, policies)
	bad(strings.ContainsAny(o.Image, " \t\n"), "Image %q: no reference of an image has spaces", o.Image)
	bad(o.ControlReplicas < 0, "ControlReplicas %d: want 1 or more", o.ControlReplicas)
	bad(!path.IsAbs(o.CNIBinDir), "CNIBinDir %q: want an absolute path", o.CNIBinDir)
	bad(!path.IsAbs(o.CNIConfDir), "CNIConfDir %q: want an absolute path", o.CNIConfDir)
	bad(o.CRDs > CRDsNone, "CRDs %d: there is no such choice", o.CRDs)
	daemons := []string{DaemonZtunnel, DaemonCNIAgent, DaemonControl}
	for _, name := range slices.Sorted(maps.Keys(o.DaemonEnv)) {
		bad(!slices.Contains(daemons, name), "DaemonEnv: no daemon %q; there are %s", name, strings.Join(daemons, ", "))
		for _, v := range o.DaemonEnv[name] {
			n, _, ok := strings.Cut(v, "=")
			bad(!ok || n == "", "DaemonEnv[%s]: %q is not NAME=value", name, v)
		}
	}
	return errors.Join(errs...)
}

// env is a daemon's environment: variables with what the caller adds in their place. A value of the caller's may hold
// "$(", which Kubernetes would expand.
func (o Options) env(daemon string, vars ...corev1.EnvVar) []corev1.EnvVar {
	for _, v := range o.DaemonEnv[daemon] {
		name, value, _ := strings.Cut(v, "=")
		vars = slices.DeleteFunc(vars, func(e corev1.EnvVar) bool { return e.Name == name })
		vars = append(vars, set(name, strings.ReplaceAll(value, "$", "$$")))
	}
	return vars
}

func set(name, value string) corev1.EnvVar { return corev1.EnvVar{Name: name, Value: value} }

// field is a variable with a field of the pod.
func field(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}
