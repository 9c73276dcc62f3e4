// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// OwnToken asks the server for another token of the service account whose token we have (TokenRequest, authentication.k8s.io/v1): one
// that is good for lifetime, if the server allows that, and bound to no pod, while ours ends with the pod that it was made for.
// The account needs the right to create serviceaccounts/token of its own name.
func (c *Cluster) OwnToken(ctx context.Context, lifetime time.Duration) (string, error) {
	token, err := c.ownToken(ctx, lifetime)
	if err != nil {
		return "", fmt.Errorf("request a token: %w", err)
	}
	return token, nil
}

func (c *Cluster) ownToken(ctx context.Context, lifetime time.Duration) (string, error) {
	a, err := c.Access()
	if err != nil {
		return "", err
	}
	namespace, name, err := accountOf(a.Token)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{"expirationSeconds": int(lifetime.Seconds())},
	})
	if err != nil {
		return "", err
	}
	path := fmt.Sprintf("%s/api/v1/namespaces/%s/serviceaccounts/%s/token", strings.TrimSuffix(c.config.Host, "/"), namespace, name)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	client, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("of %s/%s: %s: %s", namespace, name, res.Status, bytes.TrimSpace(text[:min(len(text), 300)]))
	}
	var made struct{ Status struct{ Token string } }
	if err := json.Unmarshal(text, &made); err != nil {
		return "", err
	}
	if made.Status.Token == "" {
		return "", fmt.Errorf("of %s/%s: the answer has none", namespace, name)
	}
	return made.Status.Token, nil
}

// accountOf is the service account that a token names; it is for the server to verify it.
func accountOf(token string) (namespace, name string, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", "", errors.New("we have no service account's token ourselves")
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", "", fmt.Errorf("read our own: %w", err)
	}
	var claims struct{ Sub string }
	if err := json.Unmarshal(text, &claims); err != nil {
		return "", "", fmt.Errorf("read our own: %w", err)
	}
	account, ok := strings.CutPrefix(claims.Sub, "system:serviceaccount:")
	if namespace, name, ok = strings.Cut(account, ":"); !ok {
		return "", "", fmt.Errorf("our own is not a service account's, but %q's", claims.Sub)
	}
	return namespace, name, nil
}
