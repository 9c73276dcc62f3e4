// SPDX-License-Identifier: Apache-2.0

// Package authz decides whether a connection is allowed, from the policies that apply to its destination.
// It is pure: finding the policies of a workload is catalog's work, acting on the decision the proxy's.
// Source: reference, "L4 authorization" (rules 2 to 6).
package authz

import (
	"net/netip"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Connection is what policies look at.
type Connection struct {
	Source mesh.Identity // zero: the peer showed no certificate
	SrcIP  netip.Addr    // the TCP peer: behind a waypoint, the waypoint
	Dst    netip.AddrPort
}

// Reason says why a connection was allowed or refused.
type Reason uint8

// Reasons. The first two allow, the others refuse.
const (
	NoAllowPolicies Reason = iota // nothing denied it, and no ALLOW policy exists
	AllowMatched
	DenyMatched
	NoRuleMatched // ALLOW policies exist, but none matched
)

func (r Reason) String() string {
	switch r {
	case NoAllowPolicies:
		return "no allow policies"
	case AllowMatched:
		return "allow policy matched"
	case DenyMatched:
		return "deny policy matched"
	default:
		return "allow policies exist, but none allowed"
	}
}

// Decision is the outcome for one connection.
type Decision struct {
	Allowed bool
	Reason  Reason
	By      *mesh.Policy // the policy that decided; nil with NoAllowPolicies and NoRuleMatched
	DryRun  []string     // "namespace/name" of the dry-run policies that match, in the order given
}

// Policy is the "namespace/name" of the policy that decided, "" if none did. It is made on demand, so that Decide need
// not allocate.
func (d Decision) Policy() string {
	if d.By == nil {
		return ""
	}
	return d.By.Key()
}
