// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clientPair is a self-signed client certificate, as PEM.
func clientPair(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func apiserver(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" && len(r.TLS.PeerCertificates) == 0 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/api/v1/namespaces/shop/pods/web":
			io.WriteString(w, `{"kind":"Pod","metadata":{"name":"web","namespace":"shop","labels":{"istio.io/dataplane-mode":"ambient"}},"spec":{"hostNetwork":false}}`)
		case "/api/v1/namespaces/shop":
			io.WriteString(w, `{"kind":"Namespace","metadata":{"name":"shop"}}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// writeConfig writes a kubeconfig with the given lines for the cluster and the user.
func writeConfig(t *testing.T, server, cluster, user string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: here
contexts: [{name: other, context: {cluster: x, user: x}}, {name: here, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %q, %s}}]
users: [{name: u, user: {%s}}]
`, server, cluster, user)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAPIServer(t *testing.T) {
	s := apiserver(t)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	cert, key := clientPair(t)
	b64 := base64.StdEncoding.EncodeToString
	withCA := "certificate-authority-data: " + b64(ca)
	files := t.TempDir()
	for name, b := range map[string][]byte{"ca": ca, "token": []byte("secret\n")} {
		if err := os.WriteFile(filepath.Join(files, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, server, cluster, user string
		says                        string // "": it works
	}{
		{"token", s.URL, withCA, "token: secret", ""},
		{"files", s.URL, "certificate-authority: " + files + "/ca", "tokenFile: " + files + "/token", ""},
		{"client certificate", s.URL, withCA, "client-certificate-data: " + b64(cert) + ", client-key-data: " + b64(key), ""},
		{"insecure", s.URL, "insecure-skip-tls-verify: true", "token: secret", ""},
		{"server name", s.URL, withCA + ", tls-server-name: example.com", "token: secret", ""},
		{"wrong server name", s.URL, withCA + ", tls-server-name: evil.test", "token: secret", "evil.test"},
		{"unknown authority", s.URL, "tls-server-name: example.com", "token: secret", "unknown authority"},
		{"wrong token", s.URL, withCA, "token: guess", "401 Unauthorized: the kubeconfig has the token of an agent that is gone"},
		{"plain HTTP", "http://127.0.0.1:1", withCA, "token: secret", "is not an https URL"},
		{"no server", "", withCA, "token: secret", "names no cluster with a server"},
		{"no certificate", s.URL, "certificate-authority-data: " + b64([]byte("x")), "token: secret", "holds no certificate"},
		{"no token file", s.URL, withCA, "tokenFile: nowhere", "no such file"},
		{"no key", s.URL, withCA, "client-certificate-data: " + b64(cert), "client certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api, err := newAPIServer(writeConfig(t, tt.server, tt.cluster, tt.user))
			var pod *object
			if err == nil {
				timing := Timing{Tries: 1}
				if tt.name == "wrong token" { // it is not tried again
					timing = Timing{Tries: 2, Interval: time.Hour}
				}
				pod, _, err = lookUp(t.Context(), api, "shop", "web", timing)
			}
			switch {
			case tt.says == "" && (err != nil || pod.Metadata.Labels["istio.io/dataplane-mode"] != "ambient"):
				t.Errorf("%+v, %v", pod, err)
			case tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("error %v does not say %q", err, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("error shows the token: %v", err)
			}
		})
	}
}

func TestAPIServerKnowsWhatIsMissing(t *testing.T) {
	s := apiserver(t)
	api, err := newAPIServer(writeConfig(t, s.URL, "insecure-skip-tls-verify: true", "token: secret"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.read(t.Context(), "Pod", "shop", "ghost"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
