// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// TokenIssuer is the "iss" of every token.
const TokenIssuer = "https://kubernetes.default.svc.cluster.local"

// Issuer signs service-account tokens as a Kubernetes API server does. Its key lives as long as it does, and nowhere
// else. It is safe for concurrent use.
type Issuer struct {
	signer jose.Signer
	jwks   []byte
}

// NewIssuer makes an issuer with a key of its own.
func NewIssuer() (*Issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make token key: %w", err)
	}
	jwk := jose.JSONWebKey{Key: key, Algorithm: string(jose.ES256), Use: "sig"}
	print, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("make token key: %w", err)
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(print)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk}, nil)
	if err != nil {
		return nil, fmt.Errorf("make token key: %w", err)
	}
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk.Public()}})
	if err != nil {
		return nil, fmt.Errorf("encode token keys: %w", err)
	}
	return &Issuer{signer: signer, jwks: append(jwks, '\n')}, nil
}

// JWKS is the document with which tokens are verified.
func (i *Issuer) JWKS() []byte { return i.jwks }

// Bound names an object that a token is bound to. The zero value is none.
type Bound struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

// TokenRequest says whose token, for whom, and for how long.
type TokenRequest struct {
	Namespace string
	Account   Bound
	Pod       Bound
	Node      Bound
	Audiences []string      // empty means the API server
	Lifetime  time.Duration // 0 means one hour
}

// claims beside the registered ones, as the API server writes them.
type claims struct {
	Kubernetes struct {
		Namespace string `json:"namespace"`
		Account   Bound  `json:"serviceaccount"`
		Pod       *Bound `json:"pod,omitempty"`
		Node      *Bound `json:"node,omitempty"`
	} `json:"kubernetes.io"`
}

// Token signs a token that is good from now on.
func (i *Issuer) Token(r TokenRequest, now time.Time) (string, error) {
	if r.Namespace == "" || r.Account.Name == "" {
		return "", fmt.Errorf("issue token: namespace %q, service account %q: both are needed", r.Namespace, r.Account.Name)
	}
	if len(r.Audiences) == 0 {
		r.Audiences = []string{TokenIssuer}
	}
	if r.Lifetime == 0 {
		r.Lifetime = time.Hour
	}
	std := jwt.Claims{
		Issuer:    TokenIssuer,
		Subject:   "system:serviceaccount:" + r.Namespace + ":" + r.Account.Name,
		Audience:  r.Audiences,
		IssuedAt:  jwt.NewNumericDate(now),
		NotBefore: jwt.NewNumericDate(now),
		Expiry:    jwt.NewNumericDate(now.Add(r.Lifetime)),
		ID:        rand.Text(),
	}
	var k8s claims
	k8s.Kubernetes.Namespace, k8s.Kubernetes.Account = r.Namespace, r.Account
	if r.Pod.Name != "" {
		k8s.Kubernetes.Pod = &r.Pod
	}
	if r.Node.Name != "" {
		k8s.Kubernetes.Node = &r.Node
	}
	token, err := jwt.Signed(i.signer).Claims(std).Claims(k8s).Serialize()
	if err != nil {
		return "", fmt.Errorf("issue token: %w", err)
	}
	return token, nil
}

// RenewAfter is when the holder of a token of this lifetime should get the next one: at 80 %, as kubelet does.
func RenewAfter(lifetime time.Duration) time.Duration { return lifetime * 4 / 5 }
