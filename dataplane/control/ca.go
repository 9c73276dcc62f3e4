// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	security "istio.io/api/security/v1alpha1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// impersonated is the key of a request's metadata that names whom a node's proxy asks for.
const impersonated = "ImpersonatedIdentity"

// certificates is the door of the certificate authority.
type certificates struct {
	security.UnimplementedIstioCertificateServiceServer
	server *Server
}

// CreateCertificate signs a request for the caller, or for whom it may impersonate.
func (c *certificates) CreateCertificate(ctx context.Context, r *security.IstioCertificateRequest) (*security.IstioCertificateResponse, error) {
	s := c.server
	s.metrics.csr.Add(1)
	log := s.log.With("remote", remote(ctx))
	caller, err := s.authenticate(ctx)
	if err != nil {
		s.metrics.unauthenticated.Add(1)
		log.Warn("certificate refused: who asks is not known", "err", err)
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	want := mesh.Identity{TrustDomain: s.settings.TrustDomain, Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount}
	log = log.With("caller", caller.Account(), "pod", caller.Pod.Name)
	if uri := r.GetMetadata().GetFields()[impersonated].GetStringValue(); uri != "" {
		if want, err = mesh.ParseIdentity(uri); err != nil {
			log.Warn("certificate refused", "identity", uri, "err", err)
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	log = log.With("identity", want.String())
	if err := authorize(s.cfg.Source.Load(), caller, want, s.cfg.TrustedAccounts, s.settings.TrustDomain); err != nil {
		s.metrics.denied.Add(1)
		log.Warn("certificate refused", "err", err)
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	ttl := lifetime(r.GetValidityDuration(), s.cfg.CertTTL)
	chain, err := s.sign(r.GetCsr(), holder{caller, want}, ttl)
	if err != nil {
		log.Warn("certificate refused", "err", err)
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.metrics.issued.Add(1)
	log.Info("certificate issued", "ttl", ttl)
	out := &security.IstioCertificateResponse{}
	for _, cert := range chain {
		out.CertChain = append(out.CertChain, string(cert))
	}
	return out, nil
}

// lifetime is what was asked for, at most limit.
func lifetime(seconds int64, limit time.Duration) time.Duration {
	if seconds <= 0 || seconds > int64(limit/time.Second) {
		return limit
	}
	return time.Duration(seconds) * time.Second
}

func remote(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}
