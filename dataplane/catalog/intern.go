// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// interner keeps one copy of each string that many objects share. Names that are unique to one object (uid, name) are
// not interned. Package unique is of no use here: it forgets a value when its handle dies, and we keep strings.
type interner struct {
	m     map[string]string
	floor int // size after the last sweep
}

const sweepSlack = 4096

func (in *interner) str(s *string) {
	if *s == "" {
		return
	}
	if v, ok := in.m[*s]; ok {
		*s = v
		return
	}
	if in.m == nil {
		in.m = make(map[string]string)
	}
	in.m[*s] = *s
}

func (in *interner) workload(w *mesh.Workload) {
	if strings.HasSuffix(w.UID, w.Name) { // as the control plane makes it: one string for both
		w.Name = w.UID[len(w.UID)-len(w.Name):]
	}
	for _, p := range []*string{
		&w.Namespace, &w.Network, &w.TrustDomain, &w.ServiceAccount, &w.Node, &w.CanonicalName, &w.CanonicalRevision,
		&w.WorkloadName, &w.ClusterID, &w.Locality.Region, &w.Locality.Zone, &w.Locality.Subzone,
	} {
		in.str(p)
	}
	for i := range w.Services {
		in.str(&w.Services[i].Key)
	}
	for i := range w.AuthorizationPolicies {
		in.str(&w.AuthorizationPolicies[i])
	}
	in.gateway(w.Waypoint)
	in.gateway(w.NetworkGateway)
}

func (in *interner) service(s *mesh.Service) {
	in.str(&s.Namespace)
	for i := range s.VIPs {
		in.str(&s.VIPs[i].Network)
	}
	for i := range s.CIDRs {
		in.str(&s.CIDRs[i].Network)
	}
	in.gateway(s.Waypoint)
}

func (in *interner) policy(p *mesh.Policy) { in.str(&p.Namespace) }

func (in *interner) gateway(g *mesh.GatewayAddress) {
	if g == nil {
		return
	}
	in.str(&g.Hostname.Namespace)
	in.str(&g.Hostname.Host)
	in.str(&g.Address.Network)
}

// sweep forgets strings that nothing uses any more, once they may have become half of all.
func (in *interner) sweep(s *Snapshot) {
	if len(in.m) < 2*in.floor+sweepSlack {
		return
	}
	in.m = make(map[string]string, in.floor)
	for w := range s.workloads.all() {
		in.keepWorkload(w)
	}
	in.floor = len(in.m)
}

// keepWorkload only reads: w is shared by now.
func (in *interner) keepWorkload(w *mesh.Workload) {
	c := *w
	for _, s := range []string{
		c.Namespace, c.Network, c.TrustDomain, c.ServiceAccount, c.Node, c.CanonicalName, c.CanonicalRevision,
		c.WorkloadName, c.ClusterID, c.Locality.Region, c.Locality.Zone, c.Locality.Subzone,
	} {
		in.keep(s)
	}
	for i := range c.Services {
		in.keep(c.Services[i].Key)
	}
	for _, s := range c.AuthorizationPolicies {
		in.keep(s)
	}
}

func (in *interner) keep(s string) {
	if s != "" {
		in.m[s] = s
	}
}
