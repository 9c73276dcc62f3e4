// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/metadata"
)

// TokenAudience is whom a service-account token must be meant for.
const TokenAudience = "istio-ca"

// Caller is whom a service-account token speaks for.
type Caller struct {
	Namespace      string
	ServiceAccount string
	Pod            Ref // zero if the token is not bound to a pod
	Node           Ref // zero if the token does not say
}

// Ref names an object that a token is bound to.
type Ref struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Account is "namespace/service account".
func (c Caller) Account() string { return c.Namespace + "/" + c.ServiceAccount }

// Authenticator says who holds a bearer token. Its errors are sentences that may be shown to the caller.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (Caller, error)
}

// JWKS verifies service-account tokens with the keys of a JSON Web Key Set file, which is read again when it changes.
type JWKS struct {
	path   string
	issuer string

	mu   sync.Mutex // guards what follows
	info os.FileInfo
	keys *jose.JSONWebKeySet
}

// NewJWKS verifies with the keys in path. Tokens must be of issuer, if that is not "".
func NewJWKS(path, issuer string) *JWKS { return &JWKS{path: path, issuer: issuer} }

// Check reads the file now, so that a mistake in it is found before the first token.
func (j *JWKS) Check() error {
	_, err := j.load()
	return err
}

func (j *JWKS) load() (*jose.JSONWebKeySet, error) {
	info, err := os.Stat(j.path)
	if err != nil {
		return nil, fmt.Errorf("read token keys: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.info != nil && os.SameFile(j.info, info) && j.info.ModTime().Equal(info.ModTime()) && j.info.Size() == info.Size() {
		return j.keys, nil
	}
	data, err := os.ReadFile(j.path)
	if err != nil {
		return nil, fmt.Errorf("read token keys: %w", err)
	}
	keys := &jose.JSONWebKeySet{}
	if err := json.Unmarshal(data, keys); err != nil {
		return nil, fmt.Errorf("read token keys %s: %w", j.path, err)
	}
	if len(keys.Keys) == 0 {
		return nil, fmt.Errorf("read token keys %s: no key", j.path)
	}
	for _, k := range keys.Keys {
		if !k.IsPublic() {
			return nil, fmt.Errorf("read token keys %s: key %q is not a public key", j.path, k.KeyID)
		}
	}
	j.info, j.keys = info, keys
	return keys, nil
}

type kubernetesClaims struct {
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		ServiceAccount Ref    `json:"serviceaccount"`
		Pod            Ref    `json:"pod"`
		Node           Ref    `json:"node"`
	} `json:"kubernetes.io"`
}

var tokenAlgorithms = []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.RS256}

// Authenticate implements Authenticator.
func (j *JWKS) Authenticate(_ context.Context, token string) (Caller, error) {
	keys, err := j.load()
	if err != nil {
		return Caller{}, err
	}
	t, err := jwt.ParseSigned(token, tokenAlgorithms)
	if err != nil {
		return Caller{}, fmt.Errorf("the token is no signed JWT: %w", err)
	}
	var std jwt.Claims
	var k8s kubernetesClaims
	if err := t.Claims(keys, &std, &k8s); err != nil {
		return Caller{}, fmt.Errorf("the token's signature cannot be verified: %w", err)
	}
	if std.Expiry == nil {
		return Caller{}, errors.New("the token does not say when it ends")
	}
	want := jwt.Expected{Issuer: j.issuer, AnyAudience: jwt.Audience{TokenAudience}, Time: time.Now()}
	if err := std.ValidateWithLeeway(want, 10*time.Second); err != nil {
		return Caller{}, fmt.Errorf("the token is not valid here: %w", err)
	}
	ns, sa := k8s.Kubernetes.Namespace, k8s.Kubernetes.ServiceAccount.Name
	if ns == "" || sa == "" || std.Subject != "system:serviceaccount:"+ns+":"+sa {
		return Caller{}, fmt.Errorf("the token's subject %q does not agree with its kubernetes.io claims (%s/%s)", std.Subject, ns, sa)
	}
	return Caller{Namespace: ns, ServiceAccount: sa, Pod: k8s.Kubernetes.Pod, Node: k8s.Kubernetes.Node}, nil
}

// bearer takes the token from a call's metadata.
func bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	i := slices.IndexFunc(values, func(v string) bool { return len(v) > 7 && strings.EqualFold(v[:7], "bearer ") })
	if i < 0 {
		return "", errors.New("no bearer token: send \"authorization: Bearer <service account token>\"")
	}
	return strings.TrimSpace(values[i][7:]), nil
}
