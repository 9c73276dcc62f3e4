// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"strings"
)

// DefaultTrustDomain is what an empty trust domain means on the wire.
const DefaultTrustDomain = "cluster.local"

// DefaultServiceAccount is what an empty service account means on the wire.
const DefaultServiceAccount = "default"

// Identity is a SPIFFE identity of the shape spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
// The zero value means "no identity": a peer that did not present a certificate.
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// ParseIdentity accepts exactly the URI shape that Istio issues, and nothing looser (SPIFFE-ID, section 2).
func ParseIdentity(uri string) (Identity, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if !ok {
		return Identity{}, fmt.Errorf("parse identity %q: want spiffe://<trust domain>/ns/<namespace>/sa/<service account>", uri)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" || parts[0] == "" || parts[2] == "" || parts[4] == "" {
		return Identity{}, fmt.Errorf("parse identity %q: want spiffe://<trust domain>/ns/<namespace>/sa/<service account>", uri)
	}
	return Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}, nil
}

// IsZero reports whether i is "no identity".
func (i Identity) IsZero() bool { return i == Identity{} }

// String is the SPIFFE URI; "" for the zero value.
func (i Identity) String() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.Principal()
}

// Principal is what policies compare with: the URI without its scheme; "" for the zero value.
func (i Identity) Principal() string {
	if i.IsZero() {
		return ""
	}
	return i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}
