// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// Types of conditions. An object has one of them, by its kind: see ConditionType.
const (
	ConditionAccepted = "ZtunnelAccepted"        // what ztunnel does with a policy
	ConditionWaypoint = "istio.io/WaypointBound" // whether a service has the waypoint that it asks for
)

// ConditionType is the type of condition that objects of a kind get.
func ConditionType(kind string) string {
	if kind == "Service" {
		return ConditionWaypoint
	}
	return ConditionAccepted
}

// Reasons of conditions.
const (
	ReasonAccepted    = "Accepted"
	ReasonUnsupported = "UnsupportedValue" // a part of the policy was left out
	ReasonConflict    = "Conflict"         // an older object has precedence
	ReasonInvalid     = "Invalid"          // the object cannot be read as it is
)

// Condition is what became of one object: of a policy, or of a service that asks for more than connections.
type Condition struct {
	Object     source.Key
	UID        string
	Generation int64

	Accepted bool // something of the policy is enforced, or watched in a dry run; the service has what it asks for
	Reason   string
	Message  string
	Field    string // what the reason is about; "" with ReasonAccepted
}

func conditionOf(kind string, o source.Object) *Condition {
	return &Condition{
		Object: source.Key{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}, UID: string(o.GetUID()), Generation: o.GetGeneration(),
		Accepted: true, Reason: ReasonAccepted,
	}
}

func (c *Condition) unsupported(accepted bool, field, format string, args ...any) *Condition {
	c.Accepted, c.Reason, c.Field, c.Message = accepted, ReasonUnsupported, field, fmt.Sprintf(format, args...)
	return c
}

// report files a condition; one that is not plain acceptance is a problem too.
func (c *compiler) report(o source.Object, cond *Condition) {
	if cond == nil {
		return
	}
	c.out.Conditions = append(c.out.Conditions, *cond)
	if cond.Reason != ReasonAccepted {
		c.problem(cond.Object.Kind, o, cond.Field, "%s", cond.Message)
	}
}

func compareConditions(a, b Condition) int {
	return cmp.Or(cmp.Compare(a.Object.Kind, b.Object.Kind), cmp.Compare(a.Object.Namespace, b.Object.Namespace), cmp.Compare(a.Object.Name, b.Object.Name))
}

func ignoredAction(p *securityv1.AuthorizationPolicy) *Condition {
	return conditionOf("AuthorizationPolicy", p).unsupported(false, "spec.action",
		"ztunnel knows the actions ALLOW and DENY only: this policy of action %s has no effect.", p.Spec.GetAction())
}

// accepted says what of a policy is enforced. Its sentences must stay true: who reads that a policy is stricter than
// written will not look for what it lets through.
func accepted(p *securityv1.AuthorizationPolicy, out *mesh.Policy, outcomes []outcome) *Condition {
	c := conditionOf("AuthorizationPolicy", p)
	var fields, said []string
	for _, o := range outcomes {
		fields = append(fields, o.unsupported...)
	}
	if out.DryRun {
		said = append(said, "Served to ztunnel as a dry run: what it matches is logged, nothing is decided by it.")
	}
	if len(fields) > 0 {
		slices.Sort(fields)
		said = append(said, "ztunnel judges connections, it cannot judge "+strings.Join(slices.Compact(fields), ", ")+".")
		if out.DryRun {
			said = append(said, "If it were enforced:")
		}
		if out.Action == mesh.Allow {
			said = append(said, allowSentences(outcomes)...)
		} else {
			said = append(said, denySentences(outcomes)...)
		}
		said = append(said, "A waypoint can judge them, in a policy with targetRefs.")
		c.unsupported(true, "spec.rules", "")
	}
	v, dry := p.Annotations[annotationDryRun]
	if _, err := strconv.ParseBool(v); dry && v != "" && err != nil {
		said = append(said, fmt.Sprintf("The annotation %s: %q is not a boolean: the policy is enforced.", annotationDryRun, v))
		if c.Reason == ReasonAccepted {
			c.unsupported(true, "metadata.annotations["+annotationDryRun+"]", "")
		}
	}
	switch {
	case out.DryRun:
	case len(outcomes) == 0 && out.Action == mesh.Deny:
		said = append(said, "Served to ztunnel; without rules it denies nothing.")
	case len(outcomes) == 0:
		said = append(said, "Served to ztunnel; without rules it allows nothing.")
	case len(said) == 0:
		said = append(said, "Served to ztunnel as written.")
	}
	c.Message = strings.Join(said, " ")
	return c
}

func allowSentences(outcomes []outcome) []string {
	left := which(outcomes, func(o outcome) bool { return o.left })
	if left.n == len(outcomes) {
		return []string{"Every rule is left out, so the policy allows nothing: stricter than written."}
	}
	return []string{left.are("left out: what they alone would allow is refused, stricter than written.", "left out: what it alone would allow is refused, stricter than written.")}
}

func denySentences(outcomes []outcome) []string {
	inert := which(outcomes, func(o outcome) bool { return o.inert })
	if inert.n == len(outcomes) {
		return []string{"What is left of every rule matches nothing: the policy is inert, it denies nothing."}
	}
	var said []string
	if inert.n > 0 {
		said = append(said, inert.are("inert: what is left of them matches nothing, they deny nothing.", "inert: what is left of it matches nothing, it denies nothing."))
	}
	if widened := which(outcomes, func(o outcome) bool { return o.widened && !o.inert }); widened.n > 0 {
		said = append(said, widened.are("enforced without that, and deny more: stricter than written.", "enforced without that, and denies more: stricter than written."))
	}
	if lost := which(outcomes, func(o outcome) bool { return o.lost && !o.inert }); lost.n > 0 {
		said = append(said, lost.have("alternatives of which nothing is left: those deny nothing."))
	}
	return said
}

// rules are some rules of a policy, for a sentence.
type rules struct {
	names string
	n     int
}

func which(outcomes []outcome, ok func(outcome) bool) rules {
	var r rules
	for i, o := range outcomes {
		if !ok(o) {
			continue
		}
		if r.n > 0 {
			r.names += ", "
		}
		r.names += strconv.Itoa(i)
		r.n++
	}
	return r
}

func (r rules) are(many, one string) string {
	if r.n == 1 {
		return "spec.rules[" + r.names + "] is " + one
	}
	return "spec.rules[" + r.names + "] are " + many
}

func (r rules) have(what string) string {
	if r.n == 1 {
		return "spec.rules[" + r.names + "] has " + what
	}
	return "spec.rules[" + r.names + "] have " + what
}

// withRefused is conditions with one for each policy that its source refused, in the place of what was said of its last
// good version: who wrote the policy must not read that it is in force.
func withRefused(conditions []Condition, o *source.Objects, problems []source.Problem) []Condition {
	out := slices.Clone(conditions)
	at := map[source.Key]int{}
	for i := range out {
		at[out[i].Object] = i
	}
	seen := map[source.Key]bool{}
	for _, p := range problems {
		if (p.Key.Kind != "AuthorizationPolicy" && p.Key.Kind != "PeerAuthentication") || p.Key.Namespace == "" || p.Key.Name == "" || seen[p.Key] {
			continue
		}
		seen[p.Key] = true
		c := Condition{Object: p.Key, Reason: ReasonInvalid, Field: p.Field}
		bad := source.Problem{Field: p.Field, Err: p.Err}
		c.Message = "Refused, it has no effect: " + bad.Error() + "."
		if good := o.Get(p.Key); good != nil {
			c.UID = string(good.GetUID())
			c.Message = "Refused, its last good version stays in force: " + bad.Error() + "."
		}
		if i, ok := at[p.Key]; ok {
			out[i] = c
			continue
		}
		out = append(out, c)
	}
	slices.SortFunc(out, compareConditions)
	return out
}
