// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/control/cluster"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

// parts are what differs between a directory and an API server.
type parts struct {
	from      string // where objects come from, for the log
	source    source.Source
	authority *identity.Authority
	tokens    control.Authenticator
	statuses  control.Statuses // nil: none are written
	roots     *cluster.Roots   // nil: in no cluster
	metrics   func() []control.Metric
	run       []func(context.Context) error
}

func (o *options) parts(ctx context.Context, log *slog.Logger) (*parts, error) {
	p := &parts{from: o.objects}
	if o.jwks != "" {
		keys := control.NewJWKS(o.jwks, o.issuer)
		if err := keys.Check(); err != nil {
			return nil, err
		}
		p.tokens = keys
	}
	if o.cluster() {
		return p, p.inCluster(ctx, o, log)
	}
	var err error
	if p.authority, err = identity.LoadOrCreateAuthority(o.caDir, o.TrustDomain); err != nil {
		return nil, err
	}
	p.source = file.New(o.objects, log)
	if o.statusDir != "" {
		dir := control.NewStatusDir(o.statusDir, log)
		p.statuses = dir
		p.run = append(p.run, dir.Run)
	}
	return p, nil
}

func (p *parts) inCluster(ctx context.Context, o *options, log *slog.Logger) error {
	api, err := kube.Connect(o.kubeconfig, cluster.Manager)
	if err != nil {
		return err
	}
	p.from = api.Host()
	src, err := kube.New(api, kube.Options{Kinds: kinds(), Log: log})
	if err != nil {
		return err
	}
	p.source = src
	store, err := o.store(api)
	if err != nil {
		return err
	}
	if p.authority, err = openAuthority(ctx, store, o.TrustDomain, log); err != nil {
		return err
	}
	reviews, err := cluster.NewReviews(api)
	if err != nil {
		return err
	}
	if p.tokens == nil {
		p.tokens = reviews
	}
	statuses, err := cluster.NewStatuses(api, log)
	if err != nil {
		return err
	}
	p.statuses = statuses
	if p.roots, err = cluster.NewRoots(api, src, p.authority.RootsPEM(), log); err != nil {
		return err
	}
	writer, err := cluster.NewWriter(api, cluster.LeaseConfig{Namespace: o.RootNamespace, Holder: o.holder, Log: log})
	if err != nil {
		return err
	}
	p.run = append(p.run, func(ctx context.Context) error { return writer.Run(ctx, statuses.Write, p.roots.Write) })
	p.metrics = func() []control.Metric { return measure(src, writer, statuses, p.roots, reviews) }
	return nil
}

// kinds are those that mean something to the mesh: what a node enforces is none.
func kinds() []string {
	var out []string
	for _, k := range source.Kinds() {
		if k.Name != "NetworkPolicy" {
			out = append(out, k.Name)
		}
	}
	return out
}

// store is where the authority's files are: a directory if one is named, else the cluster's Secret.
func (o *options) store(api *kube.Cluster) (identity.Store, error) {
	if o.caDir != "" {
		return identity.Directory(o.caDir), nil
	}
	return cluster.NewSecret(api, o.RootNamespace)
}

// openAuthority waits for an API server that does not answer.
func openAuthority(ctx context.Context, store identity.Store, trustDomain string, log *slog.Logger) (*identity.Authority, error) {
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	told := false
	for {
		a, err := identity.OpenAuthority(ctx, store, trustDomain)
		if err == nil || !cluster.Unreachable(err) {
			return a, err
		}
		if !told {
			log.Warn("authority cannot be read, trying again", "store", store.String(), "err", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-retry.C:
		}
	}
}

func measure(src *kube.Source, w *cluster.Writer, s *cluster.Statuses, r *cluster.Roots, t *cluster.Reviews) []control.Metric {
	h := src.Health()
	leading := int64(0)
	if w.Leading() {
		leading = 1
	}
	return []control.Metric{
		{Name: "control_api_watches_broken", Kind: "gauge", Help: "Kinds of which changes do not arrive now.", Value: int64(len(h.Broken))},
		{Name: "control_api_outages", Kind: "counter", Help: "Times that the API server could not be read.", Value: h.Outages},
		{Name: "control_writer", Kind: "gauge", Help: "1 if this replica writes statuses and roots.", Value: leading},
		{Name: "control_status_writes", Kind: "counter", Help: "Statuses written.", Value: s.Writes()},
		{Name: "control_status_write_errors", Kind: "counter", Help: "Statuses that could not be written.", Value: s.Errors()},
		{Name: "control_root_writes", Kind: "counter", Help: "Namespaces that the roots were written to.", Value: r.Writes()},
		{Name: "control_token_reviews", Kind: "counter", Help: "Tokens that the API server was asked about.", Value: t.Asked()},
		{Name: "control_token_reviews_cached", Kind: "counter", Help: "Tokens that were known.", Value: t.Cached()},
	}
}
