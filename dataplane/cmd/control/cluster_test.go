// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source/kube/kubetest"
)

const onCluster = `apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: ztunnel, namespace: istio-system}
---
apiVersion: v1
kind: Pod
metadata: {name: ztunnel-node1, namespace: istio-system}
spec: {nodeName: node1, serviceAccountName: ztunnel, containers: [{name: app, image: app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: node1, serviceAccountName: cart, containers: [{name: app, image: app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {app: far}}
spec: {nodeName: node2, serviceAccountName: far, containers: [{name: app, image: app}]}
`

func running(namespace, name, ip string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nstatus: {phase: Running, podIP: " + ip + ", podIPs: [{ip: " + ip + "}]}\n"
}

// The same command, an API server in the place of the directory: what a proxy sees must be the same, and an outage must
// cost nobody anything who was there before.
func TestEndToEndOnAnAPIServer(t *testing.T) {
	kubetest.Each(t, func(t *testing.T, k *kubetest.Server) {
		k.Apply(t, onCluster)
		k.Apply(t, kubetest.Definitions(t))
		k.ApplyStatus(t, running("istio-system", "ztunnel-node1", "10.0.0.1"))
		k.ApplyStatus(t, running("shop", "cart", "10.0.0.2"))
		dir := t.TempDir()
		roots, log := filepath.Join(dir, "roots.pem"), &logBuffer{}
		put(t, dir, "token", k.Token(t, "istio-system", "ztunnel", "ztunnel-node1", "istio-ca"))
		address := startControl(t, log, "--kubeconfig", k.Kubeconfig, "--root-cert-out", roots, "--holder", "one")
		store, _ := proxied(t, address, roots, filepath.Join(dir, "token"))
		store.await(t, "Kubernetes//Pod/shop/cart")

		k.Apply(t, "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: cart, namespace: shop}\nspec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}}\n")
		store.await(t, "Kubernetes//Pod/shop/cart names istio-system/istio_converted_static_strict")
		await(t, "the status of a policy", func() bool {
			return strings.Contains(fmt.Sprint(k.Get(t, "PeerAuthentication", "shop", "cart")["status"]), "ZtunnelAccepted")
		})
		k.Apply(t, "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: cart, namespace: shop}\nspec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRIKT}}\n")
		await(t, "a refusal in the status", func() bool {
			return strings.Contains(fmt.Sprint(k.Get(t, "PeerAuthentication", "shop", "cart")["status"]), "its last good version stays in force")
		})
		bundle := func() int {
			return strings.Count(fmt.Sprint(k.Get(t, "ConfigMap", "shop", "istio-ca-root-cert")["data"]), "BEGIN CERTIFICATE")
		}
		await(t, "the root in a namespace", func() bool { return bundle() == 1 })

		signer := identity.NewCAClient(identity.CAConfig{Address: address, RootCAFile: roots, TokenFile: filepath.Join(dir, "token"), ClusterID: "Kubernetes"})
		sign := func(account string) error {
			_, err := signer.Sign(t.Context(), mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: account})
			return err
		}
		if err := sign("cart"); err != nil {
			t.Fatal(err)
		}
		if err := sign("far"); err == nil || !strings.Contains(err.Error(), "no pod with service account shop/far runs on node node1") {
			t.Errorf("an identity of another node: %v", err)
		}

		var out bytes.Buffer
		if err := run(t.Context(), []string{"ca", "rotate", "add", "--kubeconfig", k.Kubeconfig, "--control", ""}, &out, io.Discard); err != nil {
			t.Fatal(err)
		}
		await(t, "a second root in the namespace", func() bool { return bundle() == 2 })
		await(t, "a second root for proxies", func() bool {
			data, err := os.ReadFile(roots)
			return err == nil && strings.Count(string(data), "BEGIN CERTIFICATE") == 2
		})

		out.Reset()
		if err := run(t.Context(), []string{"--check", "--kubeconfig", k.Kubeconfig}, &out, io.Discard); err == nil || !strings.Contains(out.String(), "STRIKT") {
			t.Errorf("check: %v\n%s", err, out.String())
		}

		k.Stop(t)
		log.await(t, regexp.MustCompile(`(API server cannot be read)`))
		if err := sign("cart"); err != nil {
			t.Errorf("a renewal while the API server is away: %v", err)
		}
		k.Start(t)
		k.Apply(t, strings.ReplaceAll(strings.Split(onCluster, "---\n")[4], "cart", "late"))
		k.ApplyStatus(t, running("shop", "late", "10.0.0.3"))
		store.await(t, "Kubernetes//Pod/shop/late")
	})
}
