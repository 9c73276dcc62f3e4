// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"k8s.io/client-go/rest"
)

// An API server is asked where Options.Direct says if it, and nobody else, answers there.
func TestDirect(t *testing.T) {
	version := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"major":"1","minor":"34"}`)
	})
	there, broken := httptest.NewServer(version), httptest.NewServer(http.NotFoundHandler())
	gone := httptest.NewServer(version)
	for _, s := range []*httptest.Server{there, broken} {
		t.Cleanup(s.Close)
	}
	gone.Close()
	host := func(s *httptest.Server) string {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		return u.Host
	}
	for name, c := range map[string]struct{ direct, want string }{
		"answers": {host(there), "http://" + host(there)}, "is somebody else's": {host(broken), "http://kubeconfig"}, "nobody answers": {host(gone), "http://kubeconfig"}, "none": {"", "http://kubeconfig"},
	} {
		if got := (Options{Direct: c.direct}).direct(t.Context(), &rest.Config{Host: "http://kubeconfig"}).Host; got != c.want {
			t.Errorf("%s: the API server is asked at %s, want %s", name, got, c.want)
		}
	}
}
