// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	security "istio.io/api/security/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

func newRequest(t *testing.T, uri string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.CertificateRequest{}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func (p *plane) create(t *testing.T, token, csr, impersonate string, ttl time.Duration) (*security.IstioCertificateResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if token != "" {
		ctx = withToken(ctx, token)
	}
	r := &security.IstioCertificateRequest{Csr: csr, ValidityDuration: int64(ttl / time.Second)}
	if impersonate != "" {
		r.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(impersonate)}}
	}
	return security.NewIstioCertificateServiceClient(p.conn).CreateCertificate(ctx, r)
}

func caObjects() []source.Object {
	ztunnel := func(p *corev1.Pod) { p.Spec.ServiceAccountName = "ztunnel" }
	return []source.Object{
		pod("istio-system", "ztunnel-node1", "node1", "10.0.1.1", ztunnel),
		pod("istio-system", "ztunnel-ended", "node1", "10.0.1.2", func(p *corev1.Pod) { ztunnel(p); p.Status.Phase = corev1.PodFailed }),
		pod("istio-system", "ztunnel-nowhere", "", "10.0.1.3", ztunnel),
		pod("shop", "cart", "node1", "10.0.0.1", nil),
		pod("shop", "starting", "node1", "", func(p *corev1.Pod) { p.Status = corev1.PodStatus{} }),
		pod("shop", "failed", "node1", "10.0.0.2", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
		pod("shop", "far", "node2", "10.0.0.3", nil),
	}
}

// Reference A4: who may have a certificate for whom.
func TestCertificateAuthorisation(t *testing.T) {
	p := startPlane(t, caObjects()...)
	const td = "spiffe://cluster.local/ns/"
	node1 := claims("istio-system", "ztunnel", "ztunnel-node1", "uid-ztunnel-node1", "node1")
	for _, tc := range []struct {
		name        string
		claims      map[string]any
		impersonate string
		want        string // the identity; if not a URI, what the refusal says
		code        codes.Code
	}{
		{"a pod on the node", node1, td + "shop/sa/cart", td + "shop/sa/cart", codes.OK},
		{"a pod that only starts", node1, td + "shop/sa/starting", td + "shop/sa/starting", codes.OK},
		{"itself", node1, "", td + "istio-system/sa/ztunnel", codes.OK},
		{"itself by name", node1, td + "istio-system/sa/ztunnel", td + "istio-system/sa/ztunnel", codes.OK},
		{"a pod on another node", node1, td + "shop/sa/far", "no pod with service account shop/far runs on node node1", codes.PermissionDenied},
		{"a failed pod", node1, td + "shop/sa/failed", "no pod with service account shop/failed runs on node node1", codes.PermissionDenied},
		{"another namespace", node1, td + "other/sa/cart", "no pod with service account other/cart", codes.PermissionDenied},
		{"another trust domain", node1, "spiffe://evil/ns/shop/sa/cart", `is of trust domain "evil"`, codes.PermissionDenied},
		{"no identity", node1, "spiffe://cluster.local/cart", "want spiffe://", codes.InvalidArgument},
		{"token of a pod before", claims("istio-system", "ztunnel", "ztunnel-node1", "uid-old", "node1"), td + "shop/sa/cart", `has UID "uid-ztunnel-node1", but the token is bound to "uid-old"`, codes.PermissionDenied},
		{"token of a pod that is gone", claims("istio-system", "ztunnel", "gone", "u", "node1"), td + "shop/sa/cart", "pod istio-system/gone, which the token is bound to, does not exist", codes.PermissionDenied},
		{"its own from a pod that is gone", claims("shop", "cart", "gone", "u", "node1"), "", "does not exist", codes.PermissionDenied},
		{"token of a pod that ended", claims("istio-system", "ztunnel", "ztunnel-ended", "uid-ztunnel-ended", "node1"), td + "shop/sa/cart", "has ended", codes.PermissionDenied},
		{"token of another node", claims("istio-system", "ztunnel", "ztunnel-node1", "uid-ztunnel-node1", "node2"), td + "shop/sa/far", `is on node "node1", but the token is of node "node2"`, codes.PermissionDenied},
		{"token of another pod", claims("shop", "web", "cart", "uid-cart", "node1"), "", "runs as cart, but the token is of web", codes.PermissionDenied},
		{"token without a node", claims("istio-system", "ztunnel", "ztunnel-node1", "uid-ztunnel-node1", ""), td + "shop/sa/cart", td + "shop/sa/cart", codes.OK},
		{"token without a pod", claims("istio-system", "ztunnel", "", "", ""), td + "shop/sa/cart", "is not bound to a pod", codes.PermissionDenied},
		{"a proxy without a node", claims("istio-system", "ztunnel", "ztunnel-nowhere", "uid-ztunnel-nowhere", ""), td + "shop/sa/cart", "is on no node yet", codes.PermissionDenied},
		{"an account that is not trusted", claims("shop", "cart", "cart", "uid-cart", "node1"), td + "shop/sa/starting", "shop/cart is not a trusted node account", codes.PermissionDenied},
		{"an application for itself", claims("shop", "cart", "cart", "uid-cart", "node1"), "", td + "shop/sa/cart", codes.OK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := p.create(t, p.issuer.sign(t, tc.claims), newRequest(t, ""), tc.impersonate, time.Hour)
			if status.Code(err) != tc.code {
				t.Fatalf("%v, want %v", err, tc.code)
			}
			if err != nil {
				if !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q", err, tc.want)
				}
				return
			}
			p.verify(t, out.GetCertChain(), tc.want)
		})
	}
}

// verify checks a chain: leaf first, root last, one certificate to an element.
func (p *plane) verify(t *testing.T, chain []string, want string) *x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for _, c := range chain {
		block, rest := pem.Decode([]byte(c))
		if block == nil || len(strings.TrimSpace(string(rest))) > 0 {
			t.Fatalf("an element is not one certificate: %q", c)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
	if len(certs) < 2 || !certs[len(certs)-1].IsCA {
		t.Fatalf("%d certificates, the last one no root", len(certs))
	}
	leaf := certs[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
		t.Errorf("leaf names %v, want %s", leaf.URIs, want)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: p.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Error(err)
	}
	return leaf
}

func TestCertificateRequests(t *testing.T) {
	p := startPlane(t, caObjects()...)
	token := p.issuer.sign(t, claims("shop", "cart", "cart", "uid-cart", "node1"))
	good := newRequest(t, "spiffe://cluster.local/ns/shop/sa/cart")
	for _, tc := range []struct {
		name, csr string
		ttl, want time.Duration // lifetime; 0 is a refusal
	}{
		{"asked for", good, time.Hour, time.Hour},
		{"not asked for", good, 0, 24 * time.Hour},
		{"too long", good, 1000 * time.Hour, 24 * time.Hour},
		{"another name", newRequest(t, "spiffe://cluster.local/ns/shop/sa/web"), time.Hour, 0},
		{"no request", "hello", time.Hour, 0},
		{"bad signature", corrupt(t, good), time.Hour, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := p.create(t, token, tc.csr, "", tc.ttl)
			if tc.want == 0 {
				if status.Code(err) != codes.InvalidArgument {
					t.Errorf("%v, want a refusal", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			leaf := p.verify(t, out.GetCertChain(), "spiffe://cluster.local/ns/shop/sa/cart")
			if left := time.Until(leaf.NotAfter); left > tc.want || left < tc.want-time.Minute {
				t.Errorf("lives for %v, want %v", left, tc.want)
			}
		})
	}
}

func corrupt(t *testing.T, csr string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(csr))
	block.Bytes[len(block.Bytes)-1] ^= 1
	return string(pem.EncodeToMemory(block))
}

func TestTokens(t *testing.T) {
	i := newIssuer(t)
	other := newIssuer(t)
	with := func(key string, value any) map[string]any {
		c := claims("shop", "cart", "cart", "u", "node1")
		c[key] = value
		return c
	}
	for _, tc := range []struct {
		name, token, want string
	}{
		{"good", i.sign(t, with("iat", 1)), ""},
		{"audience of one", i.sign(t, with("aud", "istio-ca")), ""},
		{"among audiences", i.sign(t, with("aud", []string{"api", "istio-ca"})), ""},
		{"another audience", i.sign(t, with("aud", []string{"api"})), "not valid here"},
		{"no audience", i.sign(t, with("aud", []string{})), "not valid here"},
		{"expired", i.sign(t, with("exp", time.Now().Add(-time.Minute).Unix())), "not valid here"},
		{"no end", i.sign(t, with("exp", nil)), "does not say when it ends"},
		{"not yet", i.sign(t, with("nbf", time.Now().Add(time.Hour).Unix())), "not valid here"},
		{"another issuer", i.sign(t, with("iss", "x")), "not valid here"},
		{"another key", other.sign(t, with("iat", 1)), "signature"},
		{"another subject", i.sign(t, with("sub", "system:serviceaccount:shop:web")), "does not agree"},
		{"no claims", i.sign(t, with("kubernetes.io", nil)), "does not agree"},
		{"a person", i.sign(t, with("sub", "alice")), "does not agree"},
		{"garbage", "x.y.z", "no signed JWT"},
		// {"alg":"none"}
		{"unsigned", "eyJhbGciOiJub25lIn0.e30.", "no signed JWT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := NewJWKS(i.path, "https://kubernetes.default.svc.cluster.local").Authenticate(t.Context(), tc.token)
			if tc.want == "" {
				want := Caller{Namespace: "shop", ServiceAccount: "cart", Pod: Ref{"cart", "u"}, Node: Ref{"node1", "n"}}
				if err != nil || c != want {
					t.Errorf("%+v %v", c, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestUnauthenticatedRequest(t *testing.T) {
	p := startPlane(t, caObjects()...)
	if _, err := p.create(t, "", newRequest(t, ""), "", time.Hour); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}
