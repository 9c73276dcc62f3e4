// SPDX-License-Identifier: Apache-2.0

package authz

import "github.com/ambientlab/ambientlab/dataplane/mesh"

// byList says what Set.Decide must: it compares c with policies one by one. A matching DENY wins over any ALLOW; of several
// matching policies of one action the first one given is named. Dry-run policies decide nothing.
func byList(policies []*mesh.Policy, c Connection) Decision {
	var d Decision
	var allow *mesh.Policy
	haveAllow := false
	for _, p := range policies {
		switch {
		case p.DryRun:
			if matches(p, &c) {
				d.DryRun = append(d.DryRun, p.Key())
			}
		case p.Action == mesh.Deny:
			if d.By == nil && matches(p, &c) {
				d.By, d.Reason = p, DenyMatched
			}
		default:
			haveAllow = true
			if allow == nil && d.By == nil && matches(p, &c) {
				allow = p
			}
		}
	}
	switch {
	case d.By != nil:
	case allow != nil:
		d.Allowed, d.By, d.Reason = true, allow, AllowMatched
	case haveAllow:
		d.Reason = NoRuleMatched
	default:
		d.Allowed, d.Reason = true, NoAllowPolicies
	}
	return d
}

// matches reports whether any rule of p does; a policy without rules never matches.
func matches(p *mesh.Policy, c *Connection) bool {
	for i := range p.Rules {
		if ruleMatches(&p.Rules[i], c) {
			return true
		}
	}
	return false
}
