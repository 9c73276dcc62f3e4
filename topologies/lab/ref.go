// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// String is "namespace/name".
func (r PodRef) String() string { return r.Namespace + "/" + r.Name }

// IsZero reports whether r names no pod.
func (r PodRef) IsZero() bool { return r == PodRef{} }

// ParsePodRef reads "namespace/name", or "name" with the namespace left empty: Lab.Find completes that.
func ParsePodRef(s string) (PodRef, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		ns, name = "", s
	}
	if name == "" || strings.Contains(name, "/") || (ok && ns == "") {
		return PodRef{}, fmt.Errorf("parse pod %q: want name or namespace/name", s)
	}
	return PodRef{Namespace: ns, Name: name}, nil
}

// String names the target for messages.
func (t Target) String() string {
	switch {
	case t.Node != "":
		return "node " + t.Node
	case t.External != "":
		return "external host " + t.External
	default:
		return "pod " + t.Pod.String()
	}
}

// Addr is the pod's first address of a family; the zero Addr if it has none.
func (p PodInfo) Addr(v6 bool) netip.Addr {
	for _, a := range p.IPs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// SortPods orders pods by namespace and name, as Driver.Pods promises.
func SortPods(pods []PodInfo) {
	slices.SortFunc(pods, func(a, b PodInfo) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}
