// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

func TestToken(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		status       int
		want, wrong  string
	}{
		{name: "granted", status: 201, answer: `{"status":{"token":"unbound"}}`, want: "unbound"},
		{name: "refused", status: 403, answer: "forbidden", wrong: "request a token of istio-system/plugin: 403 Forbidden: forbidden"},
		{name: "empty", status: 201, answer: "{}", wrong: "the answer has none"},
		{name: "no JSON", status: 201, answer: "<html>", wrong: "invalid character"},
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
				if err != nil || r.URL.Path != "/api/v1/namespaces/istio-system/serviceaccounts/plugin/token" || r.Header.Get("Authorization") != "Bearer agent" ||
					body.Kind != "TokenRequest" || body.Spec.ExpirationSeconds != 3600 || body.Spec.BoundObjectRef != nil {
					t.Errorf("%s %s %+v: %v", r.Method, r.URL, body, err)
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.answer)
			}))
			defer server.Close()
			got, err := (&Cluster{config: &rest.Config{Host: server.URL, BearerToken: "agent"}}).Token(t.Context(), "istio-system", "plugin", time.Hour)
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("error %v, want %q", err, c.wrong)
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
