// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// Token asks the server for a token of a service account (TokenRequest, authentication.k8s.io/v1) that is good for lifetime, if the
// server allows that, and bound to no pod. It takes the right to create serviceaccounts/token of that name.
func (c *Cluster) Token(ctx context.Context, namespace, account string, lifetime time.Duration) (string, error) {
	token, err := c.token(ctx, namespace, account, lifetime)
	if err != nil {
		return "", fmt.Errorf("request a token of %s/%s: %w", namespace, account, err)
	}
	return token, nil
}

func (c *Cluster) token(ctx context.Context, namespace, account string, lifetime time.Duration) (string, error) {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{"expirationSeconds": int(lifetime.Seconds())},
	})
	if err != nil {
		return "", err
	}
	path := fmt.Sprintf("%s/api/v1/namespaces/%s/serviceaccounts/%s/token", strings.TrimSuffix(c.config.Host, "/"), namespace, account)
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
		return "", fmt.Errorf("%s: %s", res.Status, bytes.TrimSpace(text[:min(len(text), 300)]))
	}
	var made struct{ Status struct{ Token string } }
	if err := json.Unmarshal(text, &made); err != nil {
		return "", err
	}
	if made.Status.Token == "" {
		return "", errors.New("the answer has none")
	}
	return made.Status.Token, nil
}
