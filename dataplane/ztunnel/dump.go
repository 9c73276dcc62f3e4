// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"crypto/x509"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// dump is the config dump: what istioctl ztunnel-config reads.
func (z *Ztunnel) dump() any {
	d := admin.Dump{
		Workloads: z.dumpWorkloads(), Services: z.dumpServices(), Policies: z.dumpPolicies(), Certificates: z.dumpCertificates(),
		StagedServices: z.dumpStaged(),
		WorkloadState:  admin.Map[admin.WorkloadState]{},
		Pools:          admin.Map[admin.List[admin.PoolEntry]]{},
		Version:        map[string]string{"version": z.cfg.Version},
		Config:         z.settings(),
	}
	z.manager.list(func(w zds.Workload, running pod, _ error) {
		state := admin.WorkloadState{State: "Pending", Info: admin.WorkloadInfo{
			Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount,
		}}
		if p, ok := running.(*proxy); ok {
			state.State = "Up"
			state.Connections = p.dumpConnections()
			d.Pools[w.UID] = p.dumpPool()
		}
		d.WorkloadState[w.UID] = state
	})
	return d
}

func (z *Ztunnel) dumpWorkloads() (out admin.List[admin.Workload]) {
	for w := range z.catalog.Load().AllWorkloads() {
		out = append(out, admin.DumpWorkload(w))
	}
	return out
}

func (z *Ztunnel) dumpServices() (out admin.List[admin.Service]) {
	s := z.catalog.Load()
	for svc := range s.AllServices() {
		out = append(out, admin.DumpService(svc, s.Endpoints(svc.Key())))
	}
	return out
}

func (z *Ztunnel) dumpPolicies() (out admin.List[admin.Policy]) {
	for p := range z.catalog.Load().AllPolicies() {
		out = append(out, admin.DumpPolicy(p))
	}
	return out
}

func (z *Ztunnel) dumpStaged() admin.Map[admin.Map[admin.Endpoint]] {
	out := admin.Map[admin.Map[admin.Endpoint]]{}
	s := z.catalog.Load()
	for key := range s.Staged() {
		out[key] = admin.DumpEndpoints(key, s.Endpoints(key))
	}
	return out
}

func (z *Ztunnel) dumpCertificates() (out admin.List[admin.Certificates]) {
	for _, c := range z.certs.List() {
		if c.Certificate == nil {
			out = append(out, admin.DumpCertificates(c.Identity.String(), c.State, nil, nil))
			continue
		}
		chain := append([]*x509.Certificate{c.Certificate.Leaf}, c.Certificate.Chain...)
		out = append(out, admin.DumpCertificates(c.Identity.String(), c.State, chain, c.Certificate.RootCerts))
	}
	return out
}

func (p *proxy) dumpConnections() admin.Connections {
	var c admin.Connections
	inbound, outbound := p.tracker.list()
	for _, l := range inbound {
		c.Inbound = append(c.Inbound, dumpLive(l))
	}
	for _, l := range outbound {
		c.Outbound = append(c.Outbound, dumpLive(l))
	}
	return c
}

func dumpLive(l live) admin.Connection {
	c := admin.Connection{Src: l.src.String(), ActualDst: l.actualDst.String(), Protocol: "TCP", Start: l.start,
		BytesSent: l.sent, BytesRecv: l.recv, Service: l.service, TraceID: l.traceID}
	if src := l.ends[0]; !src.IsZero() {
		c.SrcIdentity = src.String()
	}
	if dst := l.ends[1]; !dst.IsZero() {
		c.DstIdentity = dst.String()
	}
	if l.hbone {
		c.Protocol = "HBONE"
	}
	if l.originalDst != "" {
		c.OriginalDst = &l.originalDst
	}
	return c
}

func (p *proxy) dumpPool() admin.List[admin.PoolEntry] {
	var out admin.List[admin.PoolEntry]
	for _, c := range p.pool.Conns() {
		out = append(out, admin.PoolEntry{
			Source: c.Key.Source, Destinations: c.Key.Destinations, SourceIP: c.Key.SourceIP.String(),
			Addr: c.Key.Addr.String(), Streams: c.Streams, Opened: c.Since,
		})
	}
	return out
}

// revocations are the lists in force, beside what upstream's dump has.
type revocations struct {
	Path  string           `json:"path"`
	Read  time.Time        `json:"read,omitzero"`
	Lists []revocationList `json:"lists"`
	Error string           `json:"error,omitempty"`
}

type revocationList struct {
	Issuer     string    `json:"issuer"`
	ThisUpdate time.Time `json:"thisUpdate"`
	NextUpdate time.Time `json:"nextUpdate,omitzero"`
	Revoked    int       `json:"revoked"`
}

// dumpRevocations is nil if no file is named.
func dumpRevocations(s identity.RevocationState) *revocations {
	if s.Path == "" {
		return nil
	}
	out := &revocations{Path: s.Path, Read: s.Read, Lists: []revocationList{}}
	for _, l := range s.Lists {
		out.Lists = append(out.Lists, revocationList{Issuer: l.Issuer(), ThisUpdate: l.Updated(), NextUpdate: l.Next(), Revoked: l.Len()})
	}
	if s.Err != nil {
		out.Error = s.Err.Error()
	}
	return out
}

// settings is the part of the configuration that an operator may want to see; nothing in it is secret.
func (z *Ztunnel) settings() map[string]any {
	c := z.cfg
	return map[string]any{
		"crl":       dumpRevocations(z.revoked.State()),
		"localNode": c.Node, "network": c.Network, "clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain,
		"xdsAddress": c.XDS.Address, "caAddress": c.CA.Address, "fakeCa": c.CA.Fake, "localXdsPath": c.Local.Path,
		"inpodUds": c.ZDSPath, "dedicated": c.Dedicated, "ipv6Enabled": c.IPv6, "packetMark": c.Mark,
		"originalSource": z.keepSource, "localhostAppTunnel": c.LocalhostAppTunnel, "selfTerminationDeadline": c.Time.Drain.String(),
	}
}
