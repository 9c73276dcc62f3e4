// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

func TestGetMergesTheStatus(t *testing.T) {
	dir := labdir.Dir(t.TempDir())
	for path, text := range map[string]string{
		filepath.Join(dir.Objects(), "authorizationpolicy.shop.deny.yaml"): `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy,
  metadata: {namespace: shop, name: deny, uid: u1}, spec: {action: DENY}}`,
		filepath.Join(dir.Status("control"), "authorizationpolicy.shop.deny.yaml"): `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy,
  metadata: {namespace: shop, name: deny, uid: u1}, status: {conditions: [{type: ZtunnelAccepted, status: "True", reason: Accepted, message: fine}]}}`,
		filepath.Join(dir.Objects(), "pod.shop.web.yaml"): `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web}, sepc: {}}`,
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny"}}
	if err := get(dir, p); err != nil {
		t.Fatal(err)
	}
	if c := p.Status.GetConditions(); len(c) != 1 || c[0].GetReason() != "Accepted" || p.Spec.GetAction().String() != "DENY" {
		t.Errorf("spec %v, conditions %v", p.Spec.String(), c)
	}
	for name, want := range map[string]string{"web": "sepc", "cart": "Pod shop/cart"} {
		err := get(dir, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}})
		if !errors.Is(err, lab.ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
