// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/kindconfigs/install"
	"github.com/ambientlab/ambientlab/topologies"
)

type manifestsOptions struct {
	install.Options

	topology, cluster string
	noCRDs            bool
}

func (a *app) manifestsCommand() *cobra.Command {
	var o manifestsOptions
	c := &cobra.Command{
		Use: "manifests [TOPOLOGY]", Short: "Print what a mesh needs on a Kubernetes cluster, for kubectl",
		Long: "Prints what a mesh needs on a Kubernetes cluster: custom resources, accounts and roles, the control plane, and a proxy and an\n" +
			"agent per node. With a topology its namespaces, services, pods and policies follow; the cluster chooses nodes and addresses.\n" +
			"All containers run one image, which `lab image` makes; without --image it is that of the programs beside this one.",
		Example: "  lab manifests | kubectl apply --server-side -f -\n  lab manifests three-nodes --no-crds\n" +
			"  lab manifests --image registry.example/mesh:v1 -o json > mesh.json",
		Annotations: map[string]string{outputs: "yaml"}, Args: cobra.MaximumNArgs(1), ValidArgsFunction: completeTopologies,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.topology = args[0]
			}
			if o.cluster != "" && o.topology == "" {
				return mistake(c, fmt.Errorf("--cluster %s: in which topology?", o.cluster))
			}
			return a.manifests(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Image, "image", "", "`reference` of the image that all containers run")
	f.StringVar(&o.cluster, "cluster", "", "which cluster of the topology, if it has several")
	f.StringVar(&o.ClusterID, "cluster-id", "", "name of the cluster (the topology's, or Kubernetes)")
	f.StringVar(&o.Network, "network", "", "network of the cluster's addresses (the topology's)")
	f.StringVar(&o.TrustDomain, "trust-domain", "", "trust domain of all identities (the topology's, or cluster.local)")
	f.BoolVar(&o.noCRDs, "no-crds", false, "leave out the definitions of custom resources")
	return c
}

func completeTopologies(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return topologies.Catalogue(), cobra.ShellCompDirectiveDefault // or a file
}

func (a *app) manifests(ctx context.Context, o manifestsOptions) error {
	if o.Image == "" {
		img, err := buildImage(ctx)
		if err != nil {
			return fmt.Errorf("%w; or name an image with --image", err)
		}
		o.Image = img.Ref
	}
	if o.noCRDs {
		o.CRDs = install.CRDsNone
	}
	var spec *topologies.Spec
	var cluster *topologies.Cluster
	var err error
	if o.topology != "" {
		if spec, cluster, err = o.find(); err != nil {
			return err
		}
		o.ClusterID, o.Network = cmp.Or(o.ClusterID, cluster.Name), cmp.Or(o.Network, cluster.Network)
		o.TrustDomain, o.Domain = cmp.Or(o.TrustDomain, cluster.TrustDomain), cluster.Domain
	}
	objs, err := install.Objects(o.Options)
	if err != nil {
		return err
	}
	if spec != nil {
		more, err := spec.Objects(cluster.Name)
		if err != nil {
			return err
		}
		objs = append(objs, portable(more, objs, o.Image)...)
	}
	encode := install.YAML
	if a.output == "json" {
		encode = install.JSON
	}
	text, err := encode(objs)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(text)
	return err
}

// find is the topology and the cluster that are asked for.
func (o *manifestsOptions) find() (*topologies.Spec, *topologies.Cluster, error) {
	spec, err := load(o.topology)
	if err != nil {
		return nil, nil, err
	}
	if o.cluster == "" && len(spec.Clusters) == 1 {
		return spec, &spec.Clusters[0], nil
	}
	if c := spec.Cluster(o.cluster); c != nil {
		return spec, c, nil
	}
	names := make([]string, len(spec.Clusters))
	for i, c := range spec.Clusters {
		names[i] = c.Name
	}
	return nil, nil, usageError{fmt.Errorf("--cluster %q: want one of %s", o.cluster, strings.Join(names, ", ")), "manifests"}
}

// portable is what a topology adds to an installation, for a cluster of which only that is known: nothing that it has by itself or
// that is installed, no choice of nodes and of addresses.
func portable(objs, installed []runtime.Object, image string) []runtime.Object {
	there := map[string]bool{}
	for _, obj := range installed {
		there[identify(obj)] = true
	}
	var out []runtime.Object
	for _, obj := range objs {
		m, err := meta.Accessor(obj)
		if err != nil || m.GetLabels()[topologies.LabelProvidedBy] != "" || there[identify(obj)] {
			continue
		}
		switch o := obj.(type) {
		case *corev1.Pod:
			if o.Namespace == install.Namespace && len(o.Spec.Containers[0].Command) == 0 {
				continue // the mesh's own: Deployments and DaemonSets make them
			}
			o.Spec.NodeName, o.Spec.Containers[0].Image, o.Spec.Containers[0].ImagePullPolicy = "", image, corev1.PullIfNotPresent
		case *corev1.Service:
			withoutAddresses(o)
		}
		out = append(out, obj)
	}
	return out
}

func identify(obj runtime.Object) string {
	m, err := meta.Accessor(obj)
	if err != nil {
		return ""
	}
	return obj.GetObjectKind().GroupVersionKind().GroupKind().String() + " " + m.GetNamespace() + "/" + m.GetName()
}

// withoutAddresses leaves a service's families, of which a cluster may have but one.
func withoutAddresses(s *corev1.Service) {
	if s.Spec.ClusterIP != corev1.ClusterIPNone {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil
	}
	if p := s.Spec.IPFamilyPolicy; p != nil && *p == corev1.IPFamilyPolicyRequireDualStack {
		s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = new(corev1.IPFamilyPolicyPreferDualStack), nil
	}
}
