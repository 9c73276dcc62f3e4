// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func debugServer() *Server {
	type row struct {
		Name string            `json:"name"`
		Tags []string          `json:"tags"`
		More map[string]string `json:"more,omitempty"`
	}
	many := make([]row, mostRows+3)
	return New(Config{
		Name: "ztunnel", Version: "v0", Dump: func() any { return Dump{} },
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "m 1\n") }),
		Process: Process{
			Args:    []string{"--token=abcdef", "--token-file=/var/run/token", "--node=n1"},
			Environ: []string{"CA_TOKEN=abcdef", "XDS_HEADER_X=abcdef", "KEEPALIVE_TIME=180s", "TOKEN_PATH=/var/run/token", "PLAIN=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"},
		},
		Sections: []Section{
			{Name: "rows", About: "rows & more", Index: true, Value: func() any {
				return []row{{"<a>", []string{"x", "y"}, map[string]string{"k": "v"}}, {Name: "b"}}
			}},
			{Name: "many", About: "many", Value: func() any { return many }},
			{Name: "nothing", About: "nothing", Value: func() any { return []row{} }},
			{Name: "broken", About: "broken", Value: func() any { return make(chan int) }},
		},
	})
}

func get(h http.Handler, path, accept string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header.Set("Accept", accept)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func TestSectionsHaveTwoForms(t *testing.T) {
	h := debugServer().AdminHandler()
	const browser = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
	for _, c := range []struct{ path, accept, kind, says string }{
		{"/debug/rows", browser, "text/html", "<td>&lt;a&gt;</td><td>x<br>y</td><td><details><summary>1</summary>"},
		{"/debug/rows", "*/*", "application/json", `"name": "<a>"`},
		{"/debug/rows?format=json", browser, "application/json", `"name"`},
		{"/debug/rows?format=html", "", "text/html", "<th scope=\"col\">tags</th>"},
		{"/debug/many", browser, "text/html", "3 more: the JSON has them"},
		{"/debug/nothing", browser, "text/html", "<i>none</i>"},
		{"/debug/nothing", "", "application/json", "[]"},
		{"/debug/broken", browser, "text/html", "unsupported type"},
		{"/debug/", "", "text/html", "rows &amp; more"},
		{"/debug/", browser, "text/html", "<h2>rows</h2>"},
		{"/debug/", "application/json", "application/json", `"path": "/debug/rows"`},
		{"/debug/process", "", "application/json", `"KEEPALIVE_TIME": "180s"`},
		{"/debug/build", "", "application/json", `"go": "go1`},
		{"/debug/readiness", "", "application/json", "[]"},
	} {
		rec := get(h, c.path, c.accept)
		text := strings.ReplaceAll(rec.Body.String(), `\u003c`, "<")
		text = strings.ReplaceAll(text, `\u003e`, ">")
		if got := rec.Header().Get("Content-Type"); rec.Code != 200 || !strings.HasPrefix(got, c.kind) || !strings.Contains(text, c.says) {
			t.Errorf("%s (%s): %d, %s, no %q in\n%.900s", c.path, c.accept, rec.Code, got, c.says, text)
		}
	}
	if code := get(h, "/debug/none", browser).Code; code != http.StatusNotFound {
		t.Errorf("a page that is not there: %d", code)
	}
}

// Every link of the index leads to a page, and every page is linked or needs a POST.
func TestLinksWork(t *testing.T) {
	h := debugServer().AdminHandler()
	links := regexp.MustCompile(`href="([^"]+)"`).FindAllStringSubmatch(get(h, "/debug/", "text/html").Body.String(), -1)
	if len(links) < 15 {
		t.Fatalf("%d links", len(links))
	}
	for _, l := range links {
		path := l[1]
		if strings.HasPrefix(path, "/debug/pprof/profile") || strings.HasPrefix(path, "/debug/pprof/trace") {
			path += "?seconds=0.01"
		}
		if rec := get(h, path, "text/html"); rec.Code != http.StatusOK {
			t.Errorf("%s: %d", path, rec.Code)
		}
	}
	var index struct{ Pages []struct{ Path string } }
	if err := json.Unmarshal(get(h, "/debug/?format=json", "").Body.Bytes(), &index); err != nil || len(index.Pages) != len(links) {
		t.Errorf("%d pages in JSON, %d links, %v", len(index.Pages), len(links), err)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	page := get(debugServer().AdminHandler(), "/debug/process", "").Body.String()
	for _, secret := range []string{"abcdef", "eyJhbGci"} {
		if strings.Contains(page, secret) {
			t.Errorf("%s is shown:\n%s", secret, page)
		}
	}
	for _, plain := range []string{`"/var/run/token"`, "--token-file=/var/run/token", "--node=n1", "180s"} {
		if !strings.Contains(page, plain) {
			t.Errorf("%s is not shown:\n%s", plain, page)
		}
	}
}

func TestScrub(t *testing.T) {
	const key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB+/=\nAAAA\n-----END EC PRIVATE KEY-----"
	for in, want := range map[string]string{
		"a " + key + " b": "a (hidden private key) b",
		`{"key":"-----BEGIN PRIVATE KEY-----\nMHcCAQEE\n-----END PRIVATE KEY-----\n","more":1}`: `{"key":"(hidden private key)\n","more":1}`,
		"-----BEGIN PRIVATE KEY-----\nMHcCAQ":                                                   "(hidden private key)",
		"-----BEGIN CERTIFICATE-----\nMHcCAQ\n-----END CERTIFICATE-----":                        "-----BEGIN CERTIFICATE-----\nMHcCAQ\n-----END CERTIFICATE-----",
		"token eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl-_x, and on":             "token (hidden token), and on",
		"CLIENT_TRAFFIC_SECRET_0 " + strings.Repeat("0a", 32) + " " + strings.Repeat("b1", 48):  "CLIENT_TRAFFIC_SECRET_0 (hidden TLS secret)",
		"Authorization: Bearer abcdefghijkl":                                                    "Authorization: Bearer (hidden token)",
		"nothing to hide: eyJ, bearer of news, PRIVATE KEY":                                     "nothing to hide: eyJ, bearer of news, PRIVATE KEY",
	} {
		if got := string(Scrub([]byte(in))); got != want {
			t.Errorf("Scrub(%q) = %q, want %q", in, got, want)
		}
	}
}

// Another site's form is no operator.
func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	s, _, _, quits := testServer()
	for site, want := range map[string]int{"cross-site": 403, "same-origin": 200, "": 200} {
		r := httptest.NewRequest(http.MethodPost, "/quitquitquit", nil)
		if site != "" {
			r.Header.Set("Sec-Fetch-Site", site)
		}
		rec := httptest.NewRecorder()
		if s.AdminHandler().ServeHTTP(rec, r); rec.Code != want {
			t.Errorf("%q: %d, want %d", site, rec.Code, want)
		}
	}
	if *quits != 2 {
		t.Errorf("told to quit %d times, want 2", *quits)
	}
}

// The pages tell everything: they answer over loopback alone, wherever they listen.
func TestPagesAreServedOnLoopbackAlone(t *testing.T) {
	h := debugServer().AdminHandler()
	for ip, want := range map[string]int{"127.0.0.1": 200, "::1": 200, "10.0.0.1": 403, "fd00::1": 403} {
		r := httptest.NewRequest(http.MethodGet, "/debug/", nil)
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP(ip), Port: 15000}))
		rec := httptest.NewRecorder()
		if h.ServeHTTP(rec, r); rec.Code != want {
			t.Errorf("over %s: %d, want %d", ip, rec.Code, want)
		}
	}
}
