// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/base64"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// Access is how the plugin, on the host, speaks to the API server.
type Access struct {
	Server string // https://host:port; an IPv6 host in brackets
	CA     []byte // PEM; empty: the system's roots
	Token  string
	// Certificate and Key are for a client without a token, PEM.
	Certificate, Key []byte
	Insecure         bool // the server is not verified
	// Files are those that tell of new access when they change.
	Files []string
}

// kubeconfig is a file that needs no other, since the agent's are not the host's.
func (a Access) kubeconfig() ([]byte, error) {
	if !strings.HasPrefix(a.Server, "https://") {
		return nil, fmt.Errorf("the API server is %q: the plugin speaks https alone", a.Server)
	}
	cluster, user := map[string]any{"server": a.Server}, map[string]any{}
	put := func(m map[string]any, name string, v []byte) {
		if len(v) > 0 {
			m[name] = base64.StdEncoding.EncodeToString(v)
		}
	}
	put(cluster, "certificate-authority-data", a.CA)
	if a.Insecure {
		cluster["insecure-skip-tls-verify"] = true
	}
	if a.Token != "" {
		user["token"] = a.Token
	}
	put(user, "client-certificate-data", a.Certificate)
	put(user, "client-key-data", a.Key)
	const name = "ambient-cni"
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []any{map[string]any{"name": name, "cluster": cluster}},
		"users":    []any{map[string]any{"name": name, "user": user}},
		"contexts": []any{map[string]any{"name": name, "context": map[string]any{"cluster": name, "user": name}}},
	})
	if err != nil {
		return nil, err
	}
	return append([]byte("# Written by cni-agent for the CNI plugin ambient-cni, again whenever the token changes.\n"), text...), nil
}
