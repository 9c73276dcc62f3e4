// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
)

func TestToken(t *testing.T) {
	iss, err := NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(iss.JWKS(), &keys); err != nil || len(keys.Keys) != 1 || !keys.Keys[0].IsPublic() {
		t.Fatalf("keys: %v, %v", keys, err)
	}
	now := time.Unix(1_800_000_000, 0)
	token, err := iss.Token(TokenRequest{
		Namespace: "istio-system", Account: Bound{"ztunnel", "u1"}, Pod: Bound{"ztunnel-node1", "u2"}, Node: Bound{"node1", "u3"},
		Audiences: []string{"istio-ca"}, Lifetime: 12 * time.Hour,
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Headers[0].KeyID != keys.Keys[0].KeyID {
		t.Errorf("kid %q, want %q", parsed.Headers[0].KeyID, keys.Keys[0].KeyID)
	}
	var std jwt.Claims
	var all map[string]any
	if err := parsed.Claims(keys, &std, &all); err != nil {
		t.Fatal(err)
	}
	expect := jwt.Expected{Issuer: TokenIssuer, Subject: "system:serviceaccount:istio-system:ztunnel", AnyAudience: jwt.Audience{"istio-ca"}}
	for at, good := range map[time.Duration]bool{0: true, 11 * time.Hour: true, 13 * time.Hour: false, -time.Hour: false} {
		expect.Time = now.Add(at)
		if err := std.ValidateWithLeeway(expect, 0); (err == nil) != good {
			t.Errorf("%s after issue: %v", at, err)
		}
	}
	want := map[string]any{
		"namespace":      "istio-system",
		"serviceaccount": map[string]any{"name": "ztunnel", "uid": "u1"},
		"pod":            map[string]any{"name": "ztunnel-node1", "uid": "u2"},
		"node":           map[string]any{"name": "node1", "uid": "u3"},
	}
	if diff := cmp.Diff(want, all["kubernetes.io"]); diff != "" {
		t.Errorf("kubernetes.io (-want +got):\n%s", diff)
	}
	if _, err := iss.Token(TokenRequest{Namespace: "x"}, now); err == nil {
		t.Error("a token without an account was issued")
	}
}
