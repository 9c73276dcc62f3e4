// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// sections are the debug pages: the config dump in parts, so that none builds more than it shows.
func (z *Ztunnel) sections() []admin.Section {
	return []admin.Section{
		{Name: "config", About: "settings in force", Value: func() any { return z.settings() }, Index: true},
		{Name: "pods", About: "enrolled pods of this node", Value: func() any { return z.debugPods() }, Index: true},
		{Name: "connections", About: "open connections of the node's pods", Value: func() any { return z.debugConnections() }},
		{Name: "pools", About: "HBONE connections that are shared", Value: func() any { return z.debugPools() }},
		{Name: "certificates", About: "certificates by identity; no keys", Value: func() any { return z.debugCertificates() }, Index: true},
		{Name: "revocations", About: "revocation lists in force, and what is wrong with their file; null without CRL_PATH", Value: func() any { return dumpRevocations(z.revoked.State()) }},
		{Name: "workloads", About: "the catalogue: workloads", Value: func() any { return z.dumpWorkloads() }},
		{Name: "services", About: "the catalogue: services", Value: func() any { return z.dumpServices() }},
		{Name: "policies", About: "the catalogue: policies", Value: func() any { return z.dumpPolicies() }},
	}
}

type debugPod struct {
	UID            string `json:"uid"`
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	ServiceAccount string `json:"serviceAccount"`
	State          string `json:"state"`
	Inbound        int    `json:"inbound"`  // open connections
	Outbound       int    `json:"outbound"` // the same
	Tunnels        int    `json:"tunnels"`  // shared HBONE connections to other nodes
	Problem        string `json:"problem,omitempty"`
}

func (z *Ztunnel) debugPods() (out admin.List[debugPod]) {
	z.manager.list(func(w zds.Workload, running pod, err error) {
		d := debugPod{UID: w.UID, Namespace: w.Namespace, Name: w.Name, ServiceAccount: w.ServiceAccount, State: "Pending"}
		if err != nil {
			d.Problem = err.Error()
		}
		if p, ok := running.(*proxy); ok {
			inbound, outbound := p.tracker.list()
			d.State, d.Inbound, d.Outbound, d.Tunnels = "Up", len(inbound), len(outbound), len(p.pool.Conns())
		}
		out = append(out, d)
	})
	return out
}

type debugConnection struct {
	Pod       string `json:"pod"`
	Direction string `json:"direction"`
	admin.Connection
}

func (z *Ztunnel) debugConnections() (out admin.List[debugConnection]) {
	z.manager.list(func(w zds.Workload, running pod, _ error) {
		p, ok := running.(*proxy)
		if !ok {
			return
		}
		c := p.dumpConnections()
		for _, in := range c.Inbound {
			out = append(out, debugConnection{w.Namespace + "/" + w.Name, "inbound", in})
		}
		for _, outbound := range c.Outbound {
			out = append(out, debugConnection{w.Namespace + "/" + w.Name, "outbound", outbound})
		}
	})
	return out
}

type debugPool struct {
	Pod string `json:"pod"`
	admin.PoolEntry
}

func (z *Ztunnel) debugPools() (out admin.List[debugPool]) {
	z.manager.list(func(w zds.Workload, running pod, _ error) {
		if p, ok := running.(*proxy); ok {
			for _, e := range p.dumpPool() {
				out = append(out, debugPool{w.Namespace + "/" + w.Name, e})
			}
		}
	})
	return out
}

type debugCertificate struct {
	Identity  string `json:"identity"`
	State     string `json:"state"`
	Serial    string `json:"serialNumber,omitempty"`
	ValidFrom string `json:"validFrom,omitempty"`
	Expires   string `json:"expirationTime,omitempty"`
	Roots     int    `json:"roots"`
}

func (z *Ztunnel) debugCertificates() (out admin.List[debugCertificate]) {
	for _, c := range z.dumpCertificates() {
		d := debugCertificate{Identity: c.Identity, State: c.State, Roots: len(c.RootCerts)}
		if len(c.CertChain) > 0 {
			d.Serial, d.ValidFrom, d.Expires = c.CertChain[0].SerialNumber, c.CertChain[0].ValidFrom, c.CertChain[0].ExpirationTime
		}
		out = append(out, d)
	}
	return out
}
