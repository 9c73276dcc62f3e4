// SPDX-License-Identifier: Apache-2.0

// Package kubetest gives a test a Kubernetes API server on loopback that it can stop and start again. It is a real one
// (etcd and kube-apiserver) if the multi-call binary that the node image is built from is there: in $AMBIENTLAB_KUBERNETES,
// or bin/kubernetes of the module. Beside it, or alone where that is missing, a fake at the HTTP seam runs the same test:
// lists, watches, server-side apply and token reviews in memory, without validation or authorisation.
// Sources: Kubernetes API concepts; k8s.io/apiserver.
package kubetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// Variable names the environment variable with the path of the binary.
const Variable = "AMBIENTLAB_KUBERNETES"

// budget is how long a server may take for anything that a test waits for.
const budget = 90 * time.Second

// Server is an API server that a test talks to as cluster administrator.
type Server struct {
	// Name is "kube-apiserver" or "fake".
	Name string
	// Kubeconfig is the path of a file with the administrator's credentials.
	Kubeconfig string

	backend backend
	client  *http.Client
	url     string
}

// backend is a server that can be away for a while.
type backend interface {
	start(t testing.TB)
	stop(t testing.TB)
}

// Each runs test against the fake and, where there is one, a real server; each gets a server of its own.
func Each(t *testing.T, test func(t *testing.T, s *Server)) {
	t.Helper()
	t.Run("fake", func(t *testing.T) { test(t, Fake(t)) })
	binary := find()
	if binary == "" {
		t.Logf("ran against the fake alone: no Kubernetes binary in $%s or bin/kubernetes (make node-image builds it)", Variable)
		return
	}
	t.Run("kube-apiserver", func(t *testing.T) { test(t, Real(t, binary)) })
}

func find() string {
	if path := os.Getenv(Variable); path != "" {
		return path
	}
	dir, err := os.Getwd()
	for err == nil && dir != filepath.Dir(dir) {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			if path := filepath.Join(dir, "bin/kubernetes"); executable(path) {
				return path
			}
			return ""
		}
		dir = filepath.Dir(dir)
	}
	return ""
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// connect writes the kubeconfig and makes the test's own client.
func (s *Server) connect(t testing.TB, url, token string) {
	t.Helper()
	s.url, s.Kubeconfig = url, filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q, insecure-skip-tls-verify: %v}}]
users: [{name: test, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`, url, strings.HasPrefix(url, "https"), token)
	must(t, os.WriteFile(s.Kubeconfig, []byte(text), 0o600))
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	must(t, err)
	s.client, err = rest.HTTPClientFor(config)
	must(t, err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Stop ends the server at once, as if it were killed. What it holds is there again after Start.
func (s *Server) Stop(t testing.TB) { t.Helper(); s.backend.stop(t) }

// Start brings a stopped server back, under the same address.
func (s *Server) Start(t testing.TB) { t.Helper(); s.backend.start(t) }

// Apply applies objects as YAML or JSON documents, by server-side apply. A kind that was just installed is waited for.
func (s *Server) Apply(t testing.TB, text string) {
	t.Helper()
	for _, o := range documents(t, text) {
		s.apply(t, o, "")
	}
}

// ApplyStatus is Apply for the status of objects that are there.
func (s *Server) ApplyStatus(t testing.TB, text string) {
	t.Helper()
	for _, o := range documents(t, text) {
		s.apply(t, o, "/status")
	}
}

func (s *Server) apply(t testing.TB, o map[string]any, sub string) {
	t.Helper()
	k := kindOf(t, o["kind"].(string))
	meta := o["metadata"].(map[string]any)
	namespace, _ := meta["namespace"].(string)
	data, err := json.Marshal(o)
	must(t, err)
	path := k.path(namespace, meta["name"].(string)) + sub + "?fieldManager=test&force=true"
	var last string
	wait(t, fmt.Sprintf("apply %s %v", k.Kind, meta["name"]), func() bool {
		code, body := s.do(t, http.MethodPatch, path, "application/apply-patch+yaml", data)
		last = body
		if code >= 400 && code != http.StatusNotFound && code < 500 {
			t.Fatalf("apply %s %v: %d %s", k.Kind, meta["name"], code, body)
		}
		return code < 300
	}, &last)
}

// Delete removes an object and waits until it is gone; that it is not there is no error.
func (s *Server) Delete(t testing.TB, kind, namespace, name string) {
	t.Helper()
	old := uidOf(s.Get(t, kind, namespace, name))
	if old == "" {
		return
	}
	path := kindOf(t, kind).path(namespace, name)
	wait(t, "delete "+kind+" "+name, func() bool { // a controller may make another one at once
		if uidOf(s.Get(t, kind, namespace, name)) != old {
			return true
		}
		_, _ = s.do(t, http.MethodDelete, path+"?gracePeriodSeconds=0", "", nil)
		return false
	}, nil)
}

// uidOf is an object's; "" of none.
func uidOf(o map[string]any) string {
	meta, _ := o["metadata"].(map[string]any)
	uid, _ := meta["uid"].(string)
	return uid
}

// Get reads an object; nil if it is not there.
func (s *Server) Get(t testing.TB, kind, namespace, name string) map[string]any {
	t.Helper()
	code, body := s.do(t, http.MethodGet, kindOf(t, kind).path(namespace, name), "", nil)
	if code == http.StatusNotFound {
		return nil
	}
	if code != http.StatusOK {
		t.Fatalf("get %s %s/%s: %d %s", kind, namespace, name, code, body)
	}
	var o map[string]any
	must(t, json.Unmarshal([]byte(body), &o))
	return o
}

// Token asks for a token of a pod's service account, meant for audience and good for an hour.
func (s *Server) Token(t testing.TB, namespace, account, pod, audience string) string {
	t.Helper()
	spec := map[string]any{"audiences": []string{audience}, "expirationSeconds": 3600}
	if pod != "" {
		o := s.Get(t, "Pod", namespace, pod)
		spec["boundObjectRef"] = map[string]any{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": o["metadata"].(map[string]any)["uid"]}
	}
	data, err := json.Marshal(map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
	must(t, err)
	code, body := s.do(t, http.MethodPost, kindOf(t, "ServiceAccount").path(namespace, account)+"/token", "application/json", data)
	var answer struct {
		Status struct {
			Token string `json:"token"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(body), &answer); code >= 300 || err != nil || answer.Status.Token == "" {
		t.Fatalf("token of %s/%s: %d %s", namespace, account, code, body)
	}
	return answer.Status.Token
}

// do sends one request; 599 is a server that does not answer.
func (s *Server) do(t testing.TB, method, path, contentType string, body []byte) (code int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, s.url+path, bytes.NewReader(body))
	must(t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return 599, err.Error()
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return 599, err.Error()
	}
	return res.StatusCode, string(data)
}

func documents(t testing.TB, text string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var o map[string]any
		must(t, yaml.Unmarshal([]byte(doc), &o))
		if o != nil {
			out = append(out, o)
		}
	}
	return out
}

// wait looks until ok says so.
func wait(t testing.TB, what string, ok func() bool, last *string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(budget)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			why := ""
			if last != nil {
				why = ": " + *last
			}
			t.Fatalf("%s: not within %s%s", what, budget, why)
		}
	}
}
