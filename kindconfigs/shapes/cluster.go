// SPDX-License-Identifier: Apache-2.0

package shapes

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/ambientlab/ambientlab/topologies"
)

// ClusterOptions are what a kind cluster is made after. The zero value is the shape "default".
type ClusterOptions struct {
	Name  string // "" leaves it to kind's --name
	Nodes int    // the first is the control plane, all others are workers; 0 means 3

	IPFamily       topologies.IPFamily // "" means IPv4, as kind has it
	APIServerPort  uint16              // on this host; 0 leaves it to kind
	PodSubnets     []netip.Prefix      // one, or one per family; none leaves them to kind
	ServiceSubnets []netip.Prefix      // as PodSubnets

	KubeProxyMode     string // iptables, nftables, ipvs or none; "" leaves it to kind: iptables
	DisableDefaultCNI bool   // somebody else installs one: until then nodes are not ready
	Image             string // of the nodes; "" leaves it to kind

	UnsafeSysctls []string // that pods may ask for, beside those that Kubernetes calls safe

	// Mount is a directory of this host that every node has, for reading only, at NodeMount; "" is none.
	Mount string

	// Ephemeral is for a cluster that nobody needs after a crash of its machine: etcd does not wait for disks, and writes to its
	// database, beside its log, each second and not ten times in it; controllers do not elect whom there is but one of, which they would
	// say every 2 seconds; keys are ECDSA's, which are made and sign in no time; pods see a ConfigMap that has changed within 15 seconds, not
	// 90.
	Ephemeral bool
}

// NodeMount is where nodes have ClusterOptions.Mount.
const NodeMount = "/ambientlab"

var clusterFile = template.Must(template.New("cluster").Funcs(template.FuncMap{
	"quote": strconv.Quote, "join": join, "nodeMount": func() string { return NodeMount },
}).Parse(clusterTemplate))

func join(ps []netip.Prefix) string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return strings.Join(out, ",")
}

// Cluster renders kind's configuration of a cluster.
func Cluster(o ClusterOptions) ([]byte, error) {
	o.Nodes = cmp.Or(o.Nodes, 3)
	o.IPFamily = cmp.Or(o.IPFamily, topologies.IPv4)
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("render kind cluster: %w", err)
	}
	var b bytes.Buffer
	if err := clusterFile.Execute(&b, o); err != nil {
		return nil, fmt.Errorf("render kind cluster: %w", err)
	}
	return b.Bytes(), nil
}

var clusterName = regexp.MustCompile(`^[a-z0-9.-]*$`) // kind's rule

// validate reports every mistake at once: kind would start containers before it meets some of them.
func (o ClusterOptions) validate() error {
	var errs []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(!clusterName.MatchString(o.Name), "name %q: want lower-case letters, digits, dots and dashes", o.Name)
	bad(o.Nodes < 1, "%d nodes: want 1 or more", o.Nodes)
	families := []topologies.IPFamily{topologies.IPv4, topologies.IPv6, topologies.Dual}
	bad(!slices.Contains(families, o.IPFamily), "IP family %q: want one of %v", o.IPFamily, families)
	modes := []string{"iptables", "nftables", "ipvs", "none"}
	bad(o.KubeProxyMode != "" && !slices.Contains(modes, o.KubeProxyMode), "kube-proxy mode %q: want one of %v", o.KubeProxyMode, modes)
	errs = append(errs, o.checkSubnets("pod", o.PodSubnets), o.checkSubnets("service", o.ServiceSubnets))
	return errors.Join(errs...)
}

func (o ClusterOptions) checkSubnets(what string, ps []netip.Prefix) error {
	var v4, v6 int
	for _, p := range ps {
		switch {
		case !p.IsValid() || p != p.Masked():
			return fmt.Errorf("%s subnet %s: want an address without host bits", what, p)
		case p.Addr().Is4():
			v4++
		default:
			v6++
		}
	}
	if v4 > 1 || v6 > 1 || (v4 > 0 && !o.IPFamily.Has4()) || (v6 > 0 && !o.IPFamily.Has6()) {
		return fmt.Errorf("%s subnets %s: want at most one of each family of %s", what, join(ps), o.IPFamily)
	}
	return nil
}
