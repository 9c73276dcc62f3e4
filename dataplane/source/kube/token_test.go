// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

func tokenOf(subject string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"sub":%q}`, subject))) + ".c2ln"
}

func TestOwnToken(t *testing.T) {
	for _, c := range []struct {
		name, own, answer string
		status            int
		want, wrong       string
	}{
		{name: "granted", own: tokenOf("system:serviceaccount:istio-system:istio-cni"), status: 201, answer: `{"status":{"token":"unbound"}}`, want: "unbound"},
		{name: "refused", own: tokenOf("system:serviceaccount:istio-system:istio-cni"), status: 403, answer: "forbidden", wrong: "of istio-system/istio-cni: 403 Forbidden: forbidden"},
		{name: "empty", own: tokenOf("system:serviceaccount:istio-system:istio-cni"), status: 201, answer: "{}", wrong: "the answer has none"},
		{name: "a person", own: tokenOf("alice"), wrong: `"alice"`},
		{name: "no token", wrong: "no service account's token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var body struct {
					Kind string
					Spec struct {
						ExpirationSeconds int
						BoundObjectRef    any
					}
				}
				err := json.NewDecoder(r.Body).Decode(&body)
				if err != nil || r.URL.Path != "/api/v1/namespaces/istio-system/serviceaccounts/istio-cni/token" || r.Header.Get("Authorization") != "Bearer "+c.own ||
					body.Kind != "TokenRequest" || body.Spec.ExpirationSeconds != 3600 || body.Spec.BoundObjectRef != nil {
					t.Errorf("%s %s %+v: %v", r.Method, r.URL, body, err)
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.answer)
			}))
			defer server.Close()
			got, err := (&Cluster{config: &rest.Config{Host: server.URL, BearerToken: c.own}}).OwnToken(t.Context(), time.Hour)
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("error %v, want %q", err, c.wrong)
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
