// SPDX-License-Identifier: Apache-2.0

package shapes

import (
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/topologies"
)

//go:embed cni/projects.yaml
var projectsFile []byte

// Project is a CNI project, and what is known of it. It has one of NodeImage, Manifest, Render and Unsupported.
type Project struct {
	Name        string `json:"name"`
	NodeImage   bool   `json:"nodeImage"`   // it is what nodes come with
	Manifest    string `json:"manifest"`    // the URL of what `kubectl apply` takes, of one release
	Render      string `json:"render"`      // the command that prints such a manifest
	Unsupported string `json:"unsupported"` // why no kind cluster can have it

	NetworkPolicy bool     `json:"networkPolicy"` // it enforces NetworkPolicy objects
	Plugins       []string `json:"plugins"`       // that nodes must have, besides those that it installs

	// Of the manifest at that URL:
	IPv4Only  bool         `json:"ipv4Only"`  // pods have no IPv6 addresses
	PodSubnet netip.Prefix `json:"podSubnet"` // in which those of its cluster must be; the zero value is any
}

// Projects are the CNI projects that have a name here.
func Projects() ([]Project, error) {
	var all []Project
	if err := yaml.UnmarshalStrict(projectsFile, &all); err != nil {
		return nil, fmt.Errorf("read CNI projects: %w", err)
	}
	return all, nil
}

// Fits says all that keeps the project's manifest from serving a cluster.
func (p *Project) Fits(c *topologies.Cluster) error {
	const cure = "bring a manifest with settings of your own, --cni %s=FILE"
	var errs []error
	if p.IPv4Only && !c.IPFamily.Has4() {
		errs = append(errs, fmt.Errorf("ipFamily %s: the manifest of %s is for IPv4: "+cure, c.IPFamily, p.Name, p.Name))
	}
	for _, s := range c.PodSubnets {
		if p.PodSubnet.IsValid() && s.Addr().Is4() && (!p.PodSubnet.Contains(s.Addr()) || s.Bits() < p.PodSubnet.Bits()) {
			errs = append(errs, fmt.Errorf("podSubnets %s: the manifest of %s is for subnets of %s: "+cure, s, p.Name, p.PodSubnet, p.Name))
		}
	}
	return errors.Join(errs...)
}

// ProjectNames are what --cni takes besides files and URLs, for people.
func ProjectNames() string {
	all, err := Projects()
	if err != nil {
		return "" // whoever uses one is told
	}
	var names []string
	for _, p := range all {
		if p.Unsupported == "" {
			names = append(names, p.Name)
		}
	}
	return strings.Join(names, ", ")
}
