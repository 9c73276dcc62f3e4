// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

var web = mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

func TestSubject(t *testing.T) {
	token := func(payload string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
	}
	if got, err := subject(token(`{"sub":"system:serviceaccount:shop:web"}`)+"\n", "cluster.local"); err != nil || got != web {
		t.Errorf("%v, %v", got, err)
	}
	for name, bad := range map[string]string{
		"a person": token(`{"sub":"admin"}`), "no account": token(`{"sub":"system:serviceaccount:shop"}`), "no JSON": token(`{`),
		"no JWT": "abc", "no base64": "a.*.c",
	} {
		if got, err := subject(bad, "cluster.local"); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// What was saved can be loaded, and shakes hands with a proxy of the mesh; with strangers it does not.
func TestSavedCertificateShakesHands(t *testing.T) {
	ca := identity.NewFakeCA()
	cert, err := ca.Sign(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "cert")
	if err := Save(dir, cert); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, KeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key: %v, %v", info.Mode(), err)
	}
	client, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ca.Sign(t.Context(), mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"})
	if err != nil {
		t.Fatal(err)
	}
	got, clientErr, serverErr := shake(client, identity.ServerTLS(peer, "cluster.local"))
	if clientErr != nil || serverErr != nil || got != web {
		t.Errorf("the server saw %v; client %v, server %v", got, clientErr, serverErr)
	}
	stranger, err := tls.X509KeyPair(selfSigned(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, clientErr, _ := shake(client, &tls.Config{Certificates: []tls.Certificate{stranger}, NextProtos: []string{"h2"}}); clientErr == nil {
		t.Error("control: a server of another authority was accepted")
	}
	if _, err := Load(t.TempDir()); err == nil {
		t.Error("an empty directory was loaded")
	}
}

// shake runs one handshake over a pipe.
func shake(client, server *tls.Config) (seen mesh.Identity, clientErr, serverErr error) {
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := tls.Client(a, client)
		clientErr = c.Handshake()
		_ = a.Close()
	}()
	s := tls.Server(b, server)
	serverErr = s.Handshake()
	if serverErr == nil {
		cs := s.ConnectionState()
		seen, _ = identity.PeerIdentity(&cs)
	}
	_, _ = io.Copy(io.Discard, b)
	_ = b.Close()
	<-done
	return seen, clientErr, serverErr
}

func TestParse(t *testing.T) {
	c, out, err := Parse([]string{"--out", "/tmp/x", "--identity", "spiffe://cluster.local/ns/shop/sa/web"}, io.Discard)
	if err != nil || out != "/tmp/x" || c.Identity != web || c.CA != DefaultCA {
		t.Errorf("%+v, %q, %v", c, out, err)
	}
	var usage strings.Builder
	for _, bad := range [][]string{{}, {"--out", "x", "y"}, {"--out", "x", "--identity", "nobody"}} {
		if _, _, err := Parse(bad, &usage); err == nil || errors.Is(err, flag.ErrHelp) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if !strings.Contains(usage.String(), "--out") {
		t.Error("no usage was printed")
	}
}
