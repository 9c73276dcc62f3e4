// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"crypto/tls"
	"errors"

	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// revokedError is a connection whose peer was revoked after the handshake.
type revokedError struct{ error }

func (e *revokedError) Unwrap() error { return e.error }

// openRevocations reads the file of lists, if there is one, before the first pod.
func (z *Ztunnel) openRevocations() error {
	if z.cfg.CRLPath == "" {
		return nil
	}
	var err error
	z.revoked, err = identity.OpenRevocationFile(z.cfg.CRLPath, z.log)
	return err
}

// watchRevocations cuts the connections of everyone whom a new list names, until ctx ends.
func (z *Ztunnel) watchRevocations(ctx context.Context) error {
	for {
		changed := z.revoked.Changed()
		z.manager.list(func(_ zds.Workload, running pod, _ error) {
			if p, ok := running.(*proxy); ok {
				p.cutRevoked()
			}
		})
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// watchRoots has every certificate fetched anew when the bundle changes that the authority is verified by: it is the mesh's
// roots, which come with each certificate.
func (z *Ztunnel) watchRoots(ctx context.Context) error {
	identity.WatchRoots(ctx, z.cfg.CA.RootCAFile, z.log, func() {
		z.log.Info("roots changed; fetching all certificates", "file", z.cfg.CA.RootCAFile)
		z.certs.Refresh()
	})
	return nil
}

// checkRevoked judges a peer by the lists of this moment.
func (s *shared) checkRevoked(cs *tls.ConnectionState) error {
	lists := s.revoked.Load()
	if lists == nil || cs == nil {
		return nil
	}
	if err := lists.Check(cs.PeerCertificates, s.certs.Roots); err != nil {
		return &revokedError{err}
	}
	return nil
}

// cutRevoked ends what revoked peers have here: first each stream, which then is logged with the reason, then the
// connections, idle ones too.
func (p *proxy) cutRevoked() {
	p.tracker.revoke(p.checkRevoked)
	gone := func(i hbone.ConnInfo) bool { return p.checkRevoked(i.TLS) != nil }
	p.pool.Cut("the peer's certificate is revoked", gone)
	p.server.Cut("the peer's certificate is revoked", gone)
}

// revoke cuts every connection whose peer check refuses.
func (t *tracker) revoke(check func(*tls.ConnectionState) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		if err := check(c.peer); err != nil {
			c.cut(err)
		}
	}
}

// revocation tells whether err is about a revoked peer.
func revocation(err error) bool { return errors.Is(err, identity.ErrRevoked) }
