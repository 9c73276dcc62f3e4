// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
)

func token(payload string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func TestTokensThatNobodyIsAskedAbout(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tc := range []struct{ token, want string }{
		{"", "no signed JWT"},
		{"a.b", "no signed JWT"},
		{"a.!.c", "no signed JWT"},
		{token("x"), "does not say when it ends"},
		{token(`{}`), "does not say when it ends"},
		{token(`{"exp":1e300}`), "does not say when it ends"},
		{token(`{"exp":999}`), "the token ended at 1970-01-01T00:16:39Z"},
		{token(`{"exp":1001}`), ""},
	} {
		until, err := expiry(tc.token, now)
		switch {
		case tc.want == "" && (err != nil || until.Unix() != 1001):
			t.Errorf("%q: %v, %v", tc.token, until, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%q: %v, want %q", tc.token, err, tc.want)
		}
	}
}

func TestWhomAReviewNames(t *testing.T) {
	good := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"istio-ca"}, User: authenticationv1.UserInfo{Username: "system:serviceaccount:shop:cart"}}
	if c, err := caller(&good); err != nil || c.Account() != "shop/cart" {
		t.Errorf("control: %+v, %v", c, err)
	}
	for name, change := range map[string]func(*authenticationv1.TokenReviewStatus){
		"not accepted": func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false },
		"not for":      func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil },
		"no service account": func(s *authenticationv1.TokenReviewStatus) {
			s.User.Username = "admin"
		},
		`"system:serviceaccount:shop:", which`: func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop:" },
	} {
		s := good
		change(&s)
		if _, err := caller(&s); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRoomForVerdictsIsBounded(t *testing.T) {
	m := map[sum]verdict{}
	key := func(i int) sum { return sum{byte(i), byte(i >> 8)} }
	ended := verdict{until: time.Now().Add(-time.Second), err: fmt.Errorf("x")}
	for i := range 5 {
		keep(m, 10, key(i), ended)
	}
	for i := range 10 {
		keep(m, 10, key(100+i), verdict{until: time.Now().Add(time.Hour)})
	}
	if len(m) != 10 {
		t.Fatalf("%d entries, want 10", len(m))
	}
	for i := range 10 {
		if _, ok := m[key(100+i)]; !ok {
			t.Errorf("%d made room though others had ended", i)
		}
	}
	keep(m, 10, key(200), verdict{until: time.Now().Add(time.Hour)})
	if _, ok := m[key(200)]; !ok || len(m) != 10 {
		t.Errorf("%d entries, the newest there: %v", len(m), ok)
	}
}
