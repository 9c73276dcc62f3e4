// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// portSpec is one entry of a rule's ports. The zero value is every port of every protocol.
type portSpec struct {
	protocol corev1.Protocol
	from, to uint16 // 0: every port of the protocol
	named    string // instead of numbers: what containers call it
}

func portSpecs(ports []networkingv1.NetworkPolicyPort) []portSpec {
	if len(ports) == 0 {
		return []portSpec{{}}
	}
	out := make([]portSpec, len(ports))
	for i, p := range ports {
		s := &out[i]
		s.protocol = corev1.ProtocolTCP
		if p.Protocol != nil {
			s.protocol = *p.Protocol
		}
		switch {
		case p.Port == nil:
		case p.Port.Type == intstr.String:
			s.named = p.Port.StrVal
		default:
			*s = s.number(uint16(p.Port.IntVal))
			if p.EndPort != nil {
				s.to = uint16(*p.EndPort)
			}
		}
	}
	return out
}

// number is the spec of one port by number.
func (s portSpec) number(n uint16) portSpec { return portSpec{protocol: s.protocol, from: n, to: n} }

func (s portSpec) means(p Port) bool { return p.Name == s.named && p.Protocol == s.protocol }

// short keeps a name within what the kernel takes; names of Kubernetes may be longer.
func short(name string) string {
	const most, kept = 200, 180
	if len(name) <= most {
		return name
	}
	return fmt.Sprintf("%s-%x", name[:kept], sha256.Sum256([]byte(name)))[:most]
}

// note keeps a comment within what nft shows.
func note(text string) string {
	const most = 120
	if len(text) <= most {
		return text
	}
	return text[:most-3] + "..."
}
