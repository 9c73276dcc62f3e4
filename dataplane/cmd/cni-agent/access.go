// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/cni/install"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

const (
	// pluginTokenLifetime is for how long the plugin can tell whose pods are the mesh's without an agent. kubelet renews a pod's
	// token within the hour, and with that the agent the plugin's.
	pluginTokenLifetime = 24 * time.Hour
	tokenRequestBudget  = 5 * time.Second
)

// pluginAccess is the agent's own access to the API server, for the plugin, but with a token that outlives the agent's pod: what an
// agent wrote must do until the next one runs. It belongs to the goroutine that installs.
type pluginAccess struct {
	cluster *kube.Cluster
	log     *slog.Logger

	own, unbound string // for the agent's token of that time the plugin's; "" if there is none
}

func (p *pluginAccess) read() (install.Access, error) {
	a, err := p.cluster.Access()
	if err != nil {
		return install.Access{}, err
	}
	if a.TokenFile != "" { // else it is nobody's who ends
		a.Token = p.token(a.Token)
	}
	out := install.Access{Server: a.Server, CA: a.CA, Token: a.Token, Certificate: a.Certificate, Key: a.Key, Insecure: a.Insecure}
	for _, f := range []string{a.TokenFile, a.CAFile} {
		if f != "" {
			out.Files = append(out.Files, f)
		}
	}
	return out, nil
}

func (p *pluginAccess) token(own string) string {
	if own == p.own && p.unbound != "" {
		return p.unbound
	}
	ctx, cancel := context.WithTimeout(context.Background(), tokenRequestBudget)
	defer cancel()
	unbound, err := p.cluster.OwnToken(ctx, pluginTokenLifetime)
	if err != nil {
		if own != p.own {
			p.log.Warn("the plugin gets the agent's own token: without an agent no pod starts on this node", "error", err)
		}
		p.own, p.unbound = own, ""
		return own
	}
	p.own, p.unbound = own, unbound
	return unbound
}
