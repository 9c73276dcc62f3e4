// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationv1client "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

// What is remembered of tokens. Refusals have a room of their own, so that nobody can push good ones out with bad ones.
const (
	maxAccepted = 10000
	maxRefused  = 1000
	refusedFor  = 10 * time.Second
)

// Reviews has the API server say whom a token is of, once in the token's life: while the server is away, whoever was known
// before is still known. A token is worth nothing beyond its pod's life: that is judged at each use, from the pods.
type Reviews struct {
	client authenticationv1client.TokenReviewInterface
	flight singleflight.Group
	asked  atomic.Int64
	cached atomic.Int64

	mu       sync.Mutex // guards what follows
	accepted map[sum]verdict
	refused  map[sum]verdict
}

type sum [sha256.Size]byte

type verdict struct {
	caller control.Caller
	err    error
	until  time.Time
}

var _ control.Authenticator = (*Reviews)(nil)

// NewReviews makes it; it does no I/O.
func NewReviews(c *kube.Cluster) (*Reviews, error) {
	client, err := authenticationv1client.NewForConfig(c.Config())
	if err != nil {
		return nil, fmt.Errorf("review tokens: %w", err)
	}
	return &Reviews{client: client.TokenReviews(), accepted: map[sum]verdict{}, refused: map[sum]verdict{}}, nil
}

// Asked counts questions to the API server, Cached answers without one.
func (r *Reviews) Asked() int64 { return r.asked.Load() }

// Cached counts answers without a question.
func (r *Reviews) Cached() int64 { return r.cached.Load() }

// Authenticate implements control.Authenticator.
func (r *Reviews) Authenticate(ctx context.Context, token string) (control.Caller, error) {
	key := sum(sha256.Sum256([]byte(token)))
	if v, ok := r.known(key, time.Now()); ok {
		r.cached.Add(1)
		return v.caller, v.err
	}
	until, err := expiry(token, time.Now())
	if err != nil {
		return control.Caller{}, err // nobody need be asked
	}
	answer := r.flight.DoChan(string(key[:]), func() (any, error) {
		// Who asked first may leave; the others still wait.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		defer cancel()
		return r.review(ctx, key, token, until)
	})
	select {
	case a := <-answer:
		if a.Err != nil {
			return control.Caller{}, a.Err
		}
		v := a.Val.(verdict)
		return v.caller, v.err
	case <-ctx.Done():
		return control.Caller{}, ctx.Err()
	}
}

func (r *Reviews) known(key sum, now time.Time) (verdict, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range [...]map[sum]verdict{r.accepted, r.refused} {
		if v, ok := m[key]; ok && now.Before(v.until) {
			return v, true
		}
	}
	return verdict{}, false
}

// review asks. What the server says is remembered; that it does not answer is not.
func (r *Reviews) review(ctx context.Context, key sum, token string, until time.Time) (verdict, error) {
	r.asked.Add(1)
	answer, err := r.client.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{control.TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return verdict{}, fmt.Errorf("the token cannot be reviewed: %w", err)
	}
	v := verdict{until: until}
	v.caller, v.err = caller(&answer.Status)
	if v.err != nil {
		v.until = time.Now().Add(refusedFor)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if v.err != nil {
		keep(r.refused, maxRefused, key, v)
	} else {
		keep(r.accepted, maxAccepted, key, v)
	}
	return v, nil
}

// keep puts v into a map that holds limit entries at most: what has ended makes room first, then any other.
func keep(m map[sum]verdict, limit int, key sum, v verdict) {
	if len(m) >= limit {
		now := time.Now()
		for k, old := range m {
			if now.After(old.until) {
				delete(m, k)
			}
		}
	}
	for k := range m {
		if len(m) < limit {
			break
		}
		delete(m, k)
	}
	m[key] = v
}

// expiry reads when a token ends, without believing it: the server judges the rest.
func expiry(token string, now time.Time) (time.Time, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, errors.New("the token is no signed JWT")
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, errors.New("the token is no signed JWT")
	}
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if err := json.Unmarshal(data, &claims); err != nil || claims.Exp <= 0 || claims.Exp > 1<<40 {
		return time.Time{}, errors.New("the token does not say when it ends")
	}
	end := time.Unix(int64(claims.Exp), 0)
	if now.After(end) {
		return time.Time{}, fmt.Errorf("the token ended at %s", end.UTC().Format(time.RFC3339))
	}
	return end, nil
}

// caller is whom the server says that a token is of.
func caller(s *authenticationv1.TokenReviewStatus) (control.Caller, error) {
	switch {
	case !s.Authenticated:
		return control.Caller{}, fmt.Errorf("the token is not accepted by the API server: %s", s.Error)
	case !slices.Contains(s.Audiences, control.TokenAudience):
		return control.Caller{}, fmt.Errorf("the token is for %v, not for %s", s.Audiences, control.TokenAudience)
	}
	account, ok := strings.CutPrefix(s.User.Username, "system:serviceaccount:")
	namespace, name, ok2 := strings.Cut(account, ":")
	if !ok || !ok2 || namespace == "" || name == "" {
		return control.Caller{}, fmt.Errorf("the token is of %q, which is no service account", s.User.Username)
	}
	extra := func(key string) string {
		if v := s.User.Extra["authentication.kubernetes.io/"+key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	return control.Caller{
		Namespace: namespace, ServiceAccount: name,
		Pod:  control.Ref{Name: extra("pod-name"), UID: extra("pod-uid")},
		Node: control.Ref{Name: extra("node-name"), UID: extra("node-uid")},
	}, nil
}
