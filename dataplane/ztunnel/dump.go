// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"crypto/x509"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// dump is the config dump: what istioctl ztunnel-config reads.
func (z *Ztunnel) dump() any {
	s := z.catalog.Load()
	d := admin.Dump{
		StagedServices: admin.Map[admin.Map[admin.Endpoint]]{},
		WorkloadState:  admin.Map[admin.WorkloadState]{},
		Pools:          admin.Map[admin.List[admin.PoolEntry]]{},
		Version:        map[string]string{"version": z.cfg.Version},
		Config:         z.settings(),
	}
	for w := range s.AllWorkloads() {
		d.Workloads = append(d.Workloads, admin.DumpWorkload(w))
	}
	for svc := range s.AllServices() {
		d.Services = append(d.Services, admin.DumpService(svc, s.Endpoints(svc.Key())))
	}
	for p := range s.AllPolicies() {
		d.Policies = append(d.Policies, admin.DumpPolicy(p))
	}
	for key := range s.Staged() {
		d.StagedServices[key] = admin.DumpEndpoints(key, s.Endpoints(key))
	}
	for _, c := range z.certs.List() {
		if c.Certificate == nil {
			d.Certificates = append(d.Certificates, admin.DumpCertificates(c.Identity.String(), c.State, nil, nil))
			continue
		}
		chain := append([]*x509.Certificate{c.Certificate.Leaf}, c.Certificate.Chain...)
		d.Certificates = append(d.Certificates, admin.DumpCertificates(c.Identity.String(), c.State, chain, c.Certificate.RootCerts))
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
		BytesSent: l.sent, BytesRecv: l.recv}
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

// settings is the part of the configuration that an operator may want to see; nothing in it is secret.
func (z *Ztunnel) settings() map[string]any {
	c := z.cfg
	return map[string]any{
		"localNode": c.Node, "network": c.Network, "clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain,
		"xdsAddress": c.XDS.Address, "caAddress": c.CA.Address, "fakeCa": c.CA.Fake, "localXdsPath": c.Local.Path,
		"inpodUds": c.ZDSPath, "dedicated": c.Dedicated, "ipv6Enabled": c.IPv6, "packetMark": c.Mark,
		"originalSource": z.keepSource, "localhostAppTunnel": c.LocalhostAppTunnel, "selfTerminationDeadline": c.Time.Drain.String(),
	}
}
