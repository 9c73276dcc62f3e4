// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"maps"
	"slices"
	"time"
)

// Status is what the agent knows, for people and for evidence.
type Status struct {
	Node     string      `json:"node"`
	Pods     []PodStatus `json:"pods"` // pods that are redirected, sorted by uid
	Problems []string    `json:"problems"`
}

// PodStatus is one pod that is redirected.
type PodStatus struct {
	UID            string `json:"uid"`
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	ServiceAccount string `json:"serviceAccount"`
	NetnsInode     uint64 `json:"netnsInode"` // 0: not found yet
	Served         bool   `json:"served"`     // a proxy has acknowledged it
	Annotation     string `json:"annotation"`
	DNS            bool   `json:"dnsCapture"`
	BypassInbound  bool   `json:"bypassInbound"`
	// Drifts counts how often its rules or its proxy were found missing; DriftedAt and Drift are of the last time.
	Drifts    int        `json:"drifts"`
	DriftedAt *time.Time `json:"driftedAt,omitempty"`
	Drift     string     `json:"drift,omitempty"`
}

// Status is a copy of what the agent knows now.
func (a *Agent) Status() Status {
	st := Status{Node: a.cfg.Node, Pods: []PodStatus{}, Problems: []string{}}
	recorded := a.cfg.Annotator.Recorded()
	a.mu.Lock()
	for _, uid := range slices.Sorted(maps.Keys(a.pods)) {
		s := a.pods[uid]
		p := PodStatus{
			UID: uid, Namespace: s.ref.Namespace, Name: s.ref.Name, ServiceAccount: s.workload.ServiceAccount,
			Served: s.served, Annotation: recorded[s.ref], DNS: s.options.DNS, BypassInbound: s.options.BypassInbound,
		}
		if d, ok := a.drifts[uid]; ok {
			p.Drifts, p.DriftedAt, p.Drift = d.times, &d.last, d.what
		}
		if s.ns != nil {
			p.NetnsInode = s.ns.Inode()
		}
		st.Pods = append(st.Pods, p)
	}
	a.mu.Unlock()
	for _, p := range a.cfg.Objects.Problems() {
		st.Problems = append(st.Problems, p.Error())
	}
	return st
}
