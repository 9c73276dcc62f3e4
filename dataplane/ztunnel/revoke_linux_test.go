// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/identity/fakeca"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// revoke replaces n's file of lists by one of the test root's that names what the holders present.
func (n *node) revoke(t *testing.T, holders ...*node) {
	t.Helper()
	parse := func(data []byte) []byte {
		b, _ := pem.Decode(data)
		return b.Bytes
	}
	root, err := x509.ParseCertificate(parse(fakeca.RootPEM))
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(parse(fakeca.KeyPEM))
	if err != nil {
		t.Fatal(err)
	}
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, h := range holders {
		for _, c := range h.certs.List() {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.Certificate.Leaf.SerialNumber, RevocationTime: time.Now()})
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, root, key.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	path := n.cfg.CRLPath
	if err := os.WriteFile(path+".new", der, 0o600); err != nil {
		t.Fatal(err)
	}
	changed := n.revoked.Changed()
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("the lists are not in force")
	}
}

// TestRevocation: whom a list names is cut, idle connections included, and refused from then on, on either side.
func TestRevocation(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	app(t, l.b, 8080)
	to := netip.AddrPortFrom(addrB.v4, 8080)
	for _, side := range []struct {
		name         string
		knows, other *node
		direction    telemetry.Direction
	}{{"the client, by the server's proxy", l.zb, l.za, telemetry.Inbound}, {"the server, by the client's proxy", l.za, l.zb, telemetry.Outbound}} {
		t.Run(side.name, func(t *testing.T) {
			carried(t, l.a, to, addrA.v4)
			tunnelled(t, l, addrA.v4, to)
			c, _ := holdConnection(t, l)
			defer c.Close()
			side.knows.revoke(t, side.other)
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("the connection lives on: %v", err)
			}
			cut := func(n *node) telemetry.Entry { return n.log.take(t, "the cut connection", complete) }
			if e := cut(side.knows); e.Record.Flags != telemetry.FlagRevoked || e.Record.Direction != side.direction {
				t.Errorf("%s, flags %s, error %q", e.Record.Direction, e.Record.Flags, e.Error)
			}
			cut(side.other)
			eventually(t, "no connection is pooled", func() bool { return l.za.pooled() == 0 })

			if _, _, err := call(t.Context(), l.a, to, "x"); err == nil {
				t.Error("a revoked peer was served")
			}
			e := side.knows.log.take(t, "the refused connection", func(e telemetry.Entry) bool { return e.Record.Flags == telemetry.FlagRevoked })
			if e.Record.Direction != side.direction {
				t.Errorf("logged as %s", e.Record.Direction)
			}
			side.other.log.take(t, "the refused connection's other end", func(telemetry.Entry) bool { return true })
			side.knows.revoke(t)
			eventually(t, "control: nobody is revoked any more", func() bool {
				_, _, err := call(t.Context(), l.a, to, "x")
				return err == nil
			})
			l.za.log.drain(t)
			l.zb.log.drain(t)
		})
	}
}

// TestStaleListsAreCounted: a file that cannot be understood changes nobody's fate, so it must be seen elsewhere.
func TestStaleListsAreCounted(t *testing.T) {
	l := newLab(t)
	l.enrol(t)
	stale := func(want string) func() bool {
		return func() bool { return strings.Contains(l.zb.scrape(), "\nambientlab_crl_stale "+want+"\n") }
	}
	l.zb.revoke(t)
	eventually(t, "the lists are in force", stale("0"))
	if err := os.WriteFile(l.zb.cfg.CRLPath, []byte("no list"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lists are stale", stale("1"))
	l.zb.revoke(t)
	eventually(t, "the lists are in force again", stale("0"))
}

// drain forgets what was logged until now, once nothing more comes of connections that have ended.
func (e *entries) drain(t *testing.T) {
	t.Helper()
	e.take(t, "the last call", complete)
	for e.count() > 0 {
		e.take(t, "what is left", func(telemetry.Entry) bool { return true })
	}
}
