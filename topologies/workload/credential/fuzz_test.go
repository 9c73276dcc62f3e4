// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"encoding/base64"
	"encoding/json"
	"testing"
)

// FuzzSubject: whoever a token is read to speak for, a token of that account is read alike.
func FuzzSubject(f *testing.F) {
	f.Add("e30.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6c2hvcDp3ZWIifQ.c2ln")
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		id, err := subject(token, "td")
		if err != nil {
			return
		}
		payload, err := json.Marshal(map[string]string{"sub": "system:serviceaccount:" + id.Namespace + ":" + id.ServiceAccount})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := subject("x."+base64.RawURLEncoding.EncodeToString(payload)+".y", "td"); err != nil || again != id {
			t.Fatalf("%q is %v, said again %v, %v", token, id, again, err)
		}
	})
}
