// SPDX-License-Identifier: Apache-2.0

package nodeapi_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/source/kube"
	"github.com/ambientlab/ambientlab/dataplane/source/kube/kubetest"
	"github.com/ambientlab/ambientlab/dataplane/source/kube/nodeapi"
)

const things = `apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {taints: [{key: cni.istio.io/not-ready, effect: NoSchedule}, {key: mine, value: x, effect: NoExecute}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, annotations: {mine: stays}}
spec: {nodeName: node1, serviceAccountName: default, automountServiceAccountToken: false, containers: [{name: app, image: app}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: cni-agent, namespace: istio-system}
spec:
  selector: {matchLabels: {app: cni-agent}}
  template: {metadata: {labels: {app: cni-agent}}, spec: {containers: [{name: app, image: app}]}}
`

func connect(t *testing.T, kubeconfig string) *nodeapi.API {
	t.Helper()
	c, err := kube.Connect(kubeconfig, nodeapi.Manager)
	if err != nil {
		t.Fatal(err)
	}
	api, err := nodeapi.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func meta(o map[string]any) map[string]any { return o["metadata"].(map[string]any) }

func TestPodsAreAnnotatedByIncarnation(t *testing.T) {
	kubetest.Each(t, func(t *testing.T, k *kubetest.Server) {
		k.Apply(t, things)
		api := connect(t, k.Kubeconfig)
		uid := meta(k.Get(t, "Pod", "shop", "cart"))["uid"].(string)
		annotate := func(name, uid, value string) string {
			t.Helper()
			version, err := api.Annotate(t.Context(), "shop", name, uid, map[string]string{"a": value, "b": ""})
			if err != nil {
				t.Fatal(err)
			}
			return version
		}
		version := annotate("cart", uid, "1")
		now := meta(k.Get(t, "Pod", "shop", "cart"))
		if got := fmt.Sprint(now["annotations"]); got != "map[a:1 mine:stays]" || now["resourceVersion"] != version {
			t.Errorf("annotations %s, version %v, told %s", got, now["resourceVersion"], version)
		}
		for _, other := range [][2]string{{"cart", "00000000-0000-0000-0000-000000000000"}, {"nobody", uid}} {
			if v := annotate(other[0], other[1], "2"); v != "" {
				t.Errorf("annotated %v", other)
			}
		}
		annotate("cart", uid, "")
		if got := fmt.Sprint(meta(k.Get(t, "Pod", "shop", "cart"))["annotations"]); got != "map[mine:stays]" {
			t.Errorf("annotations %s", got)
		}
	})
}

func TestOneTaintIsRemoved(t *testing.T) {
	kubetest.Each(t, func(t *testing.T, k *kubetest.Server) {
		k.Apply(t, things)
		api := connect(t, k.Kubeconfig)
		for _, want := range []bool{true, false} {
			if removed, err := api.Untaint(t.Context(), "node1", "cni.istio.io/not-ready"); err != nil || removed != want {
				t.Errorf("removed %v, %v", removed, err)
			}
		}
		spec := fmt.Sprint(k.Get(t, "Node", "", "node1")["spec"])
		if strings.Contains(spec, "istio") || !strings.Contains(spec, "mine") {
			t.Error(spec)
		}
		if _, err := api.Untaint(t.Context(), "nobody", "x"); err == nil {
			t.Error("a node that is not there was untainted")
		}
	})
}

func TestADaemonSetThatGoes(t *testing.T) {
	kubetest.Each(t, func(t *testing.T, k *kubetest.Server) {
		k.Apply(t, things)
		api := connect(t, k.Kubeconfig)
		wanted := func(namespace string, want bool) {
			t.Helper()
			if got, err := api.Wanted(t.Context(), namespace, "cni-agent"); err != nil || got != want {
				t.Errorf("wanted %v, %v", got, err)
			}
		}
		wanted("istio-system", true)
		wanted("nowhere", false)
		k.Delete(t, "DaemonSet", "istio-system", "cni-agent")
		wanted("istio-system", false)
		k.Stop(t)
		if _, err := api.Wanted(t.Context(), "istio-system", "cni-agent"); err == nil || errors.Is(err, nodeapi.ErrRefused) {
			t.Errorf("a server that is away: %v", err)
		}
	})
}

// What a server says that neither kubetest nor a test can make it say: objects that are about to go, and refusals.
func TestAnswersAboutADaemonSet(t *testing.T) {
	const going = `{"kind":"DaemonSet","metadata":{"name":"x","deletionTimestamp":"2026-01-01T00:00:00Z"}}`
	for name, tt := range map[string]struct {
		namespace, daemonSet string
		code                 int
		wanted, refused      bool
	}{
		"stays":               {`{"kind":"Namespace","metadata":{}}`, `{"kind":"DaemonSet","metadata":{}}`, 200, true, false},
		"goes":                {`{"kind":"Namespace","metadata":{}}`, going, 200, false, false},
		"goes with namespace": {going, `{"kind":"DaemonSet","metadata":{}}`, 200, false, false},
		"no rights":           {`{"kind":"Namespace","metadata":{}}`, `{"kind":"Status","reason":"Forbidden","code":403}`, 403, false, true},
		"no account":          {`{"kind":"Namespace","metadata":{}}`, `{"kind":"Status","reason":"Unauthorized","code":401}`, 401, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				if strings.Contains(r.URL.Path, "daemonsets") {
					w.WriteHeader(tt.code)
					fmt.Fprint(w, strings.Replace(tt.daemonSet, "{", `{"apiVersion":"apps/v1",`, 1))
					return
				}
				fmt.Fprint(w, strings.Replace(tt.namespace, "{", `{"apiVersion":"v1",`, 1))
			}))
			defer server.Close()
			path := filepath.Join(t.TempDir(), "kubeconfig")
			text := fmt.Sprintf("current-context: c\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c}}]\n", server.URL)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			wanted, err := connect(t, path).Wanted(t.Context(), "istio-system", "cni-agent")
			if wanted != tt.wanted || errors.Is(err, nodeapi.ErrRefused) != tt.refused || (err != nil) != tt.refused {
				t.Errorf("wanted %v, %v", wanted, err)
			}
		})
	}
}
