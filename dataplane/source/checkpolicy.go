// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

func checkAuthorizationPolicy(p *securityv1.AuthorizationPolicy) []FieldError {
	var c checks
	spec := &p.Spec
	c.policyTarget(spec)
	action := spec.GetAction()
	if _, ok := security.AuthorizationPolicy_Action_name[int32(action)]; !ok {
		c.addf("spec.action", "%d is no action", int32(action))
	}
	custom := action == security.AuthorizationPolicy_CUSTOM
	switch {
	case custom && spec.GetProvider().GetName() == "":
		c.addf("spec.provider.name", "is missing, the action CUSTOM needs it")
	case !custom && spec.GetProvider() != nil:
		c.addf("spec.provider", "can stand beside the action CUSTOM only")
	}
	for i, r := range spec.GetRules() {
		c.rule(fmt.Sprintf("spec.rules[%d]", i), r)
	}
	return c
}

// policyTarget holds a policy to one way of saying what it is about.
func (c *checks) policyTarget(spec *security.AuthorizationPolicy) {
	c.selector("spec.selector", spec.GetSelector())
	refs := spec.GetTargetRefs()
	if spec.GetSelector() != nil && (len(refs) > 0 || spec.GetTargetRef() != nil) {
		c.addf("spec.selector", "cannot stand beside targetRefs")
	}
	if spec.GetTargetRef() != nil {
		if len(refs) > 0 {
			c.addf("spec.targetRef", "cannot stand beside targetRefs")
		}
		c.targetRef("spec.targetRef", spec.GetTargetRef())
	}
	for i, r := range refs {
		c.targetRef(fmt.Sprintf("spec.targetRefs[%d]", i), r)
	}
}

func (c *checks) targetRef(at string, r *apitype.PolicyTargetReference) {
	if r.GetKind() == "" {
		c.addf(at+".kind", "is missing")
	}
	if r.GetName() == "" {
		c.addf(at+".name", "is missing")
	}
}

func (c *checks) selector(at string, s *apitype.WorkloadSelector) {
	for k, v := range s.GetMatchLabels() {
		switch {
		case k == "":
			c.addf(at+".matchLabels", "a label has no name")
		case strings.Contains(k+v, "*"):
			c.addf(at+".matchLabels["+k+"]", "labels are matched as a whole, without *")
		}
	}
}

func (c *checks) rule(at string, r *security.Rule) {
	for i, f := range r.GetFrom() {
		c.ruleSource(fmt.Sprintf("%s.from[%d].source", at, i), f.GetSource())
	}
	for i, to := range r.GetTo() {
		c.operation(fmt.Sprintf("%s.to[%d].operation", at, i), to.GetOperation())
	}
	for i, w := range r.GetWhen() {
		c.condition(fmt.Sprintf("%s.when[%d]", at, i), w)
	}
}

// values are one field of a source, an operation or a condition.
type values struct {
	name  string
	list  []string
	check func(c *checks, field, value string) // nil: any string that is not empty
}

// group checks fields of which at least one must be there.
func (c *checks) group(at string, fields ...values) {
	some := false
	for _, f := range fields {
		some = some || len(f.list) > 0
		for i, v := range f.list {
			field := fmt.Sprintf("%s.%s[%d]", at, f.name, i)
			switch {
			case v == "":
				c.addf(field, "is empty")
			case f.check != nil:
				f.check(c, field, v)
			}
		}
	}
	if !some {
		names := make([]string, 0, len(fields))
		for _, f := range fields {
			names = append(names, f.name)
		}
		c.addf(at, "is empty: it needs one of %s", strings.Join(names, ", "))
	}
}

func (c *checks) ruleSource(at string, s *security.Source) {
	c.group(at,
		values{"principals", s.GetPrincipals(), nil}, values{"notPrincipals", s.GetNotPrincipals(), nil},
		values{"namespaces", s.GetNamespaces(), nil}, values{"notNamespaces", s.GetNotNamespaces(), nil},
		values{"serviceAccounts", s.GetServiceAccounts(), (*checks).account}, values{"notServiceAccounts", s.GetNotServiceAccounts(), (*checks).account},
		values{"ipBlocks", s.GetIpBlocks(), (*checks).block}, values{"notIpBlocks", s.GetNotIpBlocks(), (*checks).block},
		values{"remoteIpBlocks", s.GetRemoteIpBlocks(), (*checks).block}, values{"notRemoteIpBlocks", s.GetNotRemoteIpBlocks(), (*checks).block},
		values{"requestPrincipals", s.GetRequestPrincipals(), nil}, values{"notRequestPrincipals", s.GetNotRequestPrincipals(), nil},
		values{"trustDomains", s.GetTrustDomains(), nil}, values{"notTrustDomains", s.GetNotTrustDomains(), nil},
	)
	accounts := len(s.GetServiceAccounts()) + len(s.GetNotServiceAccounts())
	names := len(s.GetPrincipals()) + len(s.GetNotPrincipals()) + len(s.GetNamespaces()) + len(s.GetNotNamespaces())
	if accounts > 0 && names > 0 {
		c.addf(at+".serviceAccounts", "cannot stand beside principals or namespaces")
	}
}

func (c *checks) operation(at string, o *security.Operation) {
	c.group(at,
		values{"ports", o.GetPorts(), (*checks).portText}, values{"notPorts", o.GetNotPorts(), (*checks).portText},
		values{"hosts", o.GetHosts(), nil}, values{"notHosts", o.GetNotHosts(), nil},
		values{"methods", o.GetMethods(), nil}, values{"notMethods", o.GetNotMethods(), nil},
		values{"paths", o.GetPaths(), nil}, values{"notPaths", o.GetNotPaths(), nil},
	)
}

func (c *checks) condition(at string, w *security.Condition) {
	check, known := conditionKey(w.GetKey())
	switch {
	case w.GetKey() == "":
		c.addf(at+".key", "is missing")
	case !known:
		c.addf(at+".key", "%q is no attribute of a connection or request", w.GetKey())
	}
	c.group(at, values{"values", w.GetValues(), check}, values{"notValues", w.GetNotValues(), check})
}

// conditionKey knows the attributes of Istio's security/v1 API, "Authorization Policy Conditions".
func conditionKey(key string) (check func(*checks, string, string), known bool) {
	switch key {
	case "source.ip", "remote.ip", "destination.ip":
		return (*checks).block, true
	case "destination.port":
		return (*checks).portText, true
	case "source.serviceAccount":
		return (*checks).account, true
	case "source.namespace", "source.principal", "source.trustDomain", "connection.sni",
		"request.auth.principal", "request.auth.audiences", "request.auth.presenter":
		return nil, true
	}
	for _, prefix := range []string{"request.headers[", "request.auth.claims["} {
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			return nil, len(rest) > 1 && rest[0] != ']' && strings.HasSuffix(rest, "]")
		}
	}
	return nil, strings.HasPrefix(key, "experimental.envoy.filters.")
}

// block is an address or a CIDR; a zone means nothing on another host.
func (c *checks) block(field, s string) {
	if _, err := netip.ParsePrefix(s); err == nil {
		return
	}
	if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" {
		c.addf(field, "%q is neither an IP address nor a CIDR", s)
	}
}

func (c *checks) portText(field, s string) {
	if n, err := strconv.ParseUint(s, 10, 16); err != nil || n == 0 {
		c.addf(field, "%q is not a port (1 to 65535)", s)
	}
}

// account is "account", in the policy's own namespace, or "namespace/account".
func (c *checks) account(field, s string) {
	parts := strings.Split(s, "/")
	if len(parts) > 2 || slices.Contains(parts, "") || strings.Contains(s, "*") {
		c.addf(field, "%q is neither account nor namespace/account, without *", s)
	}
}

func checkPeerAuthentication(p *securityv1.PeerAuthentication) []FieldError {
	var c checks
	spec := &p.Spec
	c.selector("spec.selector", spec.GetSelector())
	c.mode("spec.mtls.mode", spec.GetMtls())
	if len(spec.GetPortLevelMtls()) > 0 && len(spec.GetSelector().GetMatchLabels()) == 0 {
		c.addf("spec.portLevelMtls", "needs a selector: ports are those of certain workloads")
	}
	for port, mtls := range spec.GetPortLevelMtls() {
		at := fmt.Sprintf("spec.portLevelMtls[%d]", port)
		c.port(at, int64(port))
		c.mode(at+".mode", mtls)
	}
	slices.SortFunc(c, func(a, b FieldError) int { return strings.Compare(a.Error(), b.Error()) })
	return c
}

func (c *checks) mode(at string, m *security.PeerAuthentication_MutualTLS) {
	if _, ok := security.PeerAuthentication_MutualTLS_Mode_name[int32(m.GetMode())]; !ok {
		c.addf(at, "%d is no mode", int32(m.GetMode()))
	}
}
