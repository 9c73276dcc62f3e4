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
	// pluginTokenLifetime is for how long the plugin can tell whose pods are the mesh's without an agent. kubelet renews an agent's
	// own token within the hour, and with that the agent the plugin's.
	pluginTokenLifetime = 24 * time.Hour
	tokenRequestBudget  = 5 * time.Second
)

// pluginAccess is the agent's way to the API server, for the plugin, with a token of an account that can do nothing but read pods and
// namespaces, and that outlives the agent's pod: what one agent wrote must do until the next runs. It belongs to the goroutine that
// installs.
type pluginAccess struct {
	access  func() (kube.Access, error)
	request func(ctx context.Context, lifetime time.Duration) (string, error)
	log     *slog.Logger

	own  string // the agent's token when the plugin's was asked for
	got  string // the plugin's; "" if there is none
	when time.Time
}

func newPluginAccess(cluster *kube.Cluster, namespace, account string, log *slog.Logger) *pluginAccess {
	return &pluginAccess{access: cluster.Access, log: log, request: func(ctx context.Context, lifetime time.Duration) (string, error) {
		return cluster.Token(ctx, namespace, account, lifetime)
	}}
}

func (p *pluginAccess) read() (install.Access, error) {
	a, err := p.access()
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

// token is the plugin's for an agent that has its own. One that cannot be renewed is kept while it is good; without any the plugin
// has the agent's.
func (p *pluginAccess) token(own string) string {
	if own == p.own && p.got != "" {
		return p.got
	}
	ctx, cancel := context.WithTimeout(context.Background(), tokenRequestBudget)
	defer cancel()
	got, err := p.request(ctx, pluginTokenLifetime)
	if err == nil {
		p.own, p.got, p.when = own, got, time.Now()
		return got
	}
	if p.got != "" && time.Since(p.when) < pluginTokenLifetime {
		p.log.Warn("the plugin's token is not renewed", "error", err)
		return p.got
	}
	p.log.Warn("the plugin gets the agent's own token: without an agent no pod starts on this node", "error", err)
	p.got = ""
	return own
}
