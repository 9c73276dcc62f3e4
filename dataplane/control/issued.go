// SPDX-License-Identifier: Apache-2.0

package control

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// issued remembers the newest certificate of each holder, so that an operator who changes the root knows when everybody
// has followed.
type issued struct {
	started time.Time
	mu      sync.Mutex // guards latest
	latest  map[holder]issue
}

// holder is who asked, and for whom.
type holder struct {
	caller Caller
	id     mesh.Identity
}

type issue struct {
	version int // of the authority
	until   time.Time
}

func (i *issued) add(h holder, version int, until time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.latest == nil {
		i.latest = map[holder]issue{}
	}
	i.latest[h] = issue{version, until}
}

// behind lists the holders whose newest certificate is of before a version and still good, and drops those that are past.
func (i *issued) behind(version int, now time.Time, wanted func(holder) bool) []Behind {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := []Behind{}
	for h, c := range i.latest {
		switch {
		case now.After(c.until):
			delete(i.latest, h)
		case c.version < version && wanted(h):
			out = append(out, Behind{Identity: h.id.String(), Holder: h.caller.Namespace + "/" + h.caller.Pod.Name, Until: c.until})
		}
	}
	slices.SortFunc(out, func(a, b Behind) int { return strings.Compare(a.Holder+a.Identity, b.Holder+b.Identity) })
	return out
}

// AuthorityStatus is where a change of roots stands, as /debug/ca shows it.
type AuthorityStatus struct {
	// Directory is where the authority's files are, as this process sees it; "" is Secret istio-ca-secret of Namespace.
	Directory string         `json:"directory,omitempty"`
	Namespace string         `json:"namespace,omitempty"`
	Version   int            `json:"version"` // grows with every change of roots or signer
	Issuer    CertificateRef `json:"issuer"`
	// Roots are all that are trusted, that of the issuer first.
	Roots []CertificateRef `json:"roots"`
	// Behind lists who holds a certificate of before the last change of roots, and so may neither trust nor be trusted by
	// everybody. It must be empty before the next step.
	Behind []Behind `json:"behind"`
	// UnknownUntil is set if certificates may be about that were issued before this process began: they end by then.
	UnknownUntil *time.Time `json:"unknownUntil,omitempty"`
}

// CertificateRef tells certificates apart.
type CertificateRef struct {
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"`
	SHA256   string    `json:"sha256"`
	NotAfter time.Time `json:"notAfter"`
}

// Behind is a certificate of an earlier version.
type Behind struct {
	Identity string    `json:"identity"`
	Holder   string    `json:"holder"` // the pod that asked for it
	Until    time.Time `json:"until"`
}

// Ready reports whether the next step of a change of roots cuts nobody off.
func (s *AuthorityStatus) Ready() bool { return len(s.Behind) == 0 && s.UnknownUntil == nil }

// AuthorityStatus describes the authority and who has not followed it.
func (s *Server) AuthorityStatus() AuthorityStatus {
	now, a := time.Now(), s.cfg.Authority.State()
	out := AuthorityStatus{Directory: s.cfg.AuthorityDir, Version: a.Version, Issuer: refOf(a.Issuer)}
	if out.Directory == "" {
		out.Namespace = s.settings.RootNamespace
	}
	for _, r := range a.Roots {
		out.Roots = append(out.Roots, refOf(r))
	}
	o := s.cfg.Source.Load()
	out.Behind = s.issued.behind(a.Trust, now, func(h holder) bool { return s.mayHold(o, h) })
	if until := s.issued.started.Add(s.cfg.CertTTL); !a.Created && now.Before(until) {
		out.UnknownUntil = &until
	}
	return out
}

// mayHold reports whether h would be given its certificate again: a node's proxy drops one whose last pod has left.
func (s *Server) mayHold(o *source.Objects, h holder) bool {
	return authorize(o, h.caller, h.id, s.cfg.TrustedAccounts, s.settings.TrustDomain) == nil
}

func refOf(c *x509.Certificate) CertificateRef {
	sum := sha256.Sum256(c.Raw)
	return CertificateRef{Subject: c.Subject.String(), Serial: c.SerialNumber.String(), SHA256: hex.EncodeToString(sum[:]), NotAfter: c.NotAfter}
}

// sign signs for h, and remembers it.
func (s *Server) sign(csr string, h holder, ttl time.Duration) ([][]byte, error) {
	// Read before signing: a change in between makes the holder look behind, which costs a refresh, not a connection.
	version := s.cfg.Authority.State().Version
	chain, err := s.cfg.Authority.SignCSR([]byte(csr), h.id, ttl)
	if err == nil {
		s.issued.add(h, version, time.Now().Add(ttl))
	}
	return chain, err
}
