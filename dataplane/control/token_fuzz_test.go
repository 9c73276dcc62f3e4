// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// FuzzToken: of what the issuer signs, only what names one service account consistently is believed, and a token that says
// the same again is believed alike; what it did not sign never is.
func FuzzToken(f *testing.F) {
	good, err := json.Marshal(claims("shop", "cart", "cart", "u", "node1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add(`{"iss":"https://kubernetes.default.svc.cluster.local","sub":"system:serviceaccount:a:b","aud":"istio-ca","exp":9e9,"kubernetes.io":{"namespace":"a"}}`)
	f.Add("x.y.z")
	f.Add(`{"exp":1e400}`)
	i := newIssuer(f)
	a := NewJWKS(i.path, "https://kubernetes.default.svc.cluster.local")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := a.Authenticate(t.Context(), text); err == nil {
			t.Fatalf("%q was believed to be %+v", text, c)
		}
		if !json.Valid([]byte(text)) {
			return
		}
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "k1"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.Authenticate(t.Context(), token)
		if err != nil {
			return
		}
		if c.Namespace == "" || c.ServiceAccount == "" {
			t.Fatalf("%s is %+v", text, c)
		}
		again := claims(c.Namespace, c.ServiceAccount, c.Pod.Name, c.Pod.UID, "")
		if second, err := a.Authenticate(t.Context(), i.sign(t, again)); err != nil || second.Account() != c.Account() {
			t.Fatalf("%+v said again is %+v, %v", c, second, err)
		}
	})
}
