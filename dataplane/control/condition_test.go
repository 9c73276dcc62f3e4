// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"strings"
	"testing"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// Whoever edits a policy badly must not read that it is in force.
func TestRefusedPoliciesSaySo(t *testing.T) {
	key := func(kind, name string) source.Key { return source.Key{Kind: kind, Namespace: "shop", Name: name} }
	o := objectsOf(&securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "edited", UID: "u"}})
	conditions := []Condition{
		{Object: key("AuthorizationPolicy", "edited"), Accepted: true, Reason: ReasonAccepted, Generation: 1},
		{Object: key("AuthorizationPolicy", "good"), Accepted: true, Reason: ReasonAccepted, Generation: 1},
	}
	bad := errors.New("unknown field")
	got := withRefused(conditions, o, []source.Problem{
		{Key: key("AuthorizationPolicy", "edited"), Field: "spec.x", Err: bad},
		{Key: key("AuthorizationPolicy", "edited"), Field: "spec.y", Err: bad},
		{Key: key("PeerAuthentication", "never"), Field: "spec.z", Err: bad},
		{Key: key("Pod", "cart"), Err: bad},
		{File: "a.yaml", Err: bad},
	})
	var said []string
	for _, c := range got {
		said = append(said, c.Object.Name+" "+c.Reason+" "+c.Message)
	}
	want := []string{
		"edited Invalid Refused, its last good version stays in force: spec.x: unknown field.", "good Accepted ",
		"never Invalid Refused, it has no effect: spec.z: unknown field.",
	}
	if strings.Join(said, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q, want %q", said, want)
	}
	if got[0].Accepted || got[0].UID != "u" || got[0].Generation != 0 || !conditions[0].Accepted {
		t.Errorf("%+v", got[0])
	}
}
