// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"time"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/cluster"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
)

const (
	tokenLife     = 12 * time.Hour // upstream's projected token
	istioAudience = "istio-ca"
)

// tokens are a pod's service-account tokens: one for the API server, one for the mesh's CA in the mesh's own pods, and
// those that its volumes ask for.
func (s *site) tokens(p *pod) ([]pause.File, error) {
	o := p.object()
	account := o.Spec.ServiceAccountName
	objs := s.snapshot()
	request := cluster.TokenRequest{
		Namespace: p.ref.Namespace, Account: cluster.Bound{Name: account}, Pod: cluster.Bound{Name: p.ref.Name, UID: p.uid},
		Node: cluster.Bound{Name: p.node.name}, Lifetime: tokenLife,
	}
	if sa := objs.ServiceAccounts[p.ref.Namespace+"/"+account]; sa != nil {
		request.Account.UID = string(sa.UID)
	}
	if n := objs.Nodes[p.node.name]; n != nil {
		request.Node.UID = string(n.UID)
	}
	token, err := s.issuer.Token(request, time.Now())
	if err != nil {
		return nil, err
	}
	files := []pause.File{{Path: accountDir + "/token", Content: token, Mode: 0o600}}
	projected := projectedTokens(o)
	if p.role != roleApp {
		projected = append(projected, projectedToken{path: istioToken, audience: istioAudience})
	}
	for _, t := range projected {
		request.Audiences = []string{t.audience}
		if t.audience == "" {
			request.Audiences = nil
		}
		if token, err = s.issuer.Token(request, time.Now()); err != nil {
			return nil, err
		}
		files = append(files, pause.File{Path: t.path, Content: token, Mode: 0o600})
	}
	return files, nil
}

// renewTokens replaces tokens in time, until ctx ends.
func (s *site) renewTokens(ctx context.Context) {
	tick := time.NewTicker(cluster.RenewAfter(tokenLife))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, p := range s.podList() {
			files, err := s.tokens(p)
			if init := p.handle(); err == nil && init != nil {
				err = init.Write(ctx, files...)
			}
			if err != nil {
				s.log.Error("token not renewed", "pod", p.ref, "err", err)
			}
		}
	}
}
