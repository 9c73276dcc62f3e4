// SPDX-License-Identifier: Apache-2.0

package zc

import (
	"cmp"
	"fmt"
	"maps"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
)

// Workloads shows d's workloads; services names their waypoints.
func Workloads(d *admin.Dump, services []admin.Service) Table {
	t := Table{Header: []string{"NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"}}
	for i := range d.Workloads {
		w := &d.Workloads[i]
		at := w.Hostname // of a workload that has no address
		if len(w.WorkloadIPs) > 0 {
			at = w.WorkloadIPs[0]
		}
		t.Rows = append(t.Rows, []string{w.Namespace, w.Name, at, w.Node, waypoint(w.Waypoint, services), w.Protocol})
	}
	return t
}

// Services shows d's services; services names their waypoints.
func Services(d *admin.Dump, services []admin.Service) Table {
	t := Table{Header: []string{"NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"}}
	for i := range d.Services {
		s := &d.Services[i]
		vips := make([]string, len(s.VIPs))
		for j, v := range s.VIPs {
			vips[j] = address(v)
		}
		healthy := 0
		for _, e := range s.Endpoints {
			if e.Status == "" || e.Status == "Healthy" {
				healthy++
			}
		}
		t.Rows = append(t.Rows, []string{s.Namespace, s.Name, strings.Join(vips, ","), waypoint(s.Waypoint, services), fmt.Sprintf("%d/%d", healthy, len(s.Endpoints))})
	}
	return t
}

// waypoint finds a waypoint's name by the address or the host name that the dump has.
func waypoint(g *admin.Gateway, services []admin.Service) string {
	if g == nil {
		return "None"
	}
	for i := range services {
		s := &services[i]
		if slices.Contains(s.VIPs, g.Destination) || s.Namespace+"/"+s.Hostname == g.Destination {
			return s.Name
		}
	}
	return "NA"
}

// Policies shows d's policies.
func Policies(d *admin.Dump) Table {
	t := Table{Header: []string{"NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"}}
	for i := range d.Policies {
		p := &d.Policies[i]
		action := p.Action
		if p.DryRun {
			action += " (dry run)"
		}
		t.Rows = append(t.Rows, []string{p.Namespace, p.Name, action, p.Scope})
	}
	return t
}

// Certificates shows d's certificates and whether they are good at now.
func Certificates(d *admin.Dump, now time.Time) Table {
	t := Table{Header: []string{"CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"}}
	const na = "NA"
	for i := range d.Certificates {
		c := &d.Certificates[i]
		state, _, _ := strings.Cut(c.State, ":") // "Unavailable: why" is for -o json
		if len(c.CertChain) == 0 {
			t.Rows = append(t.Rows, []string{c.Identity, na, state, "false", na, na, na})
		}
		row := func(kind string, v *admin.Certificate) {
			t.Rows = append(t.Rows, []string{
				c.Identity, kind, state, strconv.FormatBool(valid(v, now)), serial(v.SerialNumber), cmp.Or(v.ExpirationTime, na), cmp.Or(v.ValidFrom, na),
			})
		}
		for j := range c.CertChain {
			kind := "Leaf"
			if j > 0 {
				kind = "Intermediate"
			}
			row(kind, &c.CertChain[j])
		}
		for j := range c.RootCerts {
			row("Root", &c.RootCerts[j])
		}
	}
	return t
}

func serial(decimal string) string {
	n, ok := new(big.Int).SetString(decimal, 10)
	if !ok {
		return cmp.Or(decimal, "NA")
	}
	return n.Text(16)
}

func valid(c *admin.Certificate, now time.Time) bool {
	from, err1 := time.Parse(time.RFC3339, c.ValidFrom)
	to, err2 := time.Parse(time.RFC3339, c.ExpirationTime)
	return err1 == nil && err2 == nil && !now.Before(from) && now.Before(to)
}

// States are the pods of d and their connections, sorted by name.
func States(d *admin.Dump) []admin.WorkloadState {
	return slices.SortedFunc(maps.Values(d.WorkloadState), func(a, b admin.WorkloadState) int {
		return cmp.Or(cmp.Compare(a.Info.Namespace, b.Info.Namespace), cmp.Compare(a.Info.Name, b.Info.Name))
	})
}

// Connections shows d's connections. Names are found in known, unless raw wants addresses; wide adds identities, bytes and
// ages, which upstream's dump does not have.
func Connections(d, known *admin.Dump, raw, wide bool, now time.Time) Table {
	t := Table{Header: []string{"WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"}}
	if wide {
		t.Header = append(t.Header, "AGE", "SENT", "RECEIVED", "SOURCE IDENTITY", "DESTINATION IDENTITY")
	}
	n := names{}
	if !raw {
		n = namesOf(known)
	}
	for _, s := range States(d) {
		row := func(direction string, c *admin.Connection, local, remote string) {
			target := ""
			if c.OriginalDst != nil {
				target = *c.OriginalDst
			}
			r := []string{s.Info.Name + "." + s.Info.Namespace, direction, n.of(local), n.of(remote), n.of(target), c.Protocol}
			if wide {
				age := ""
				if !c.Start.IsZero() {
					age = now.Sub(c.Start).Round(time.Millisecond).String()
				}
				r = append(r, age, strconv.FormatUint(c.BytesSent, 10), strconv.FormatUint(c.BytesRecv, 10), c.SrcIdentity, c.DstIdentity)
			}
			t.Rows = append(t.Rows, r)
		}
		for i := range s.Connections.Inbound {
			c := &s.Connections.Inbound[i]
			row("Inbound", c, c.ActualDst, c.Src)
		}
		for i := range s.Connections.Outbound {
			c := &s.Connections.Outbound[i]
			row("Outbound", c, c.Src, c.ActualDst)
		}
	}
	return t
}

// names are what addresses are called.
type names map[string]string

func namesOf(d *admin.Dump) names {
	n := names{}
	for i := range d.Workloads {
		for _, ip := range d.Workloads[i].WorkloadIPs {
			n[ip] = d.Workloads[i].Name + "." + d.Workloads[i].Namespace
		}
	}
	for i := range d.Services {
		for _, v := range d.Services[i].VIPs {
			n[address(v)] = d.Services[i].Hostname
		}
	}
	return n
}

func (n names) of(addr string) string {
	ip, port, err := net.SplitHostPort(addr)
	if err != nil || n[ip] == "" {
		return addr
	}
	return net.JoinHostPort(n[ip], port)
}
