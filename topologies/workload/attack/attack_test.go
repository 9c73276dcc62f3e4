// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/topologies/workload/credential"
)

// TestKinds runs every attack for a moment against a real server: those with a certificate get in and send, those without
// do not; and the server serves an honest client afterwards.
func TestKinds(t *testing.T) {
	id := mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	cert, err := identity.NewFakeCA().Sign(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "cert")
	if err := credential.Save(dir, cert); err != nil {
		t.Fatal(err)
	}
	hostile, err := credential.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	app := echo(t)
	for _, certificate := range []bool{true, false} {
		for _, kind := range Kinds(certificate) {
			t.Run(kind, func(t *testing.T) {
				to := victim(t, cert)
				cfg := Config{Kind: kind, To: to, Authority: app, Download: app, Connections: 1, Duration: 50 * time.Millisecond}
				if certificate {
					if _, err := Run(t.Context(), cfg); err == nil {
						t.Error("an attack that needs a certificate did without")
					}
					cfg.TLS, cfg.Duration = hostile, 200*time.Millisecond
				}
				res, err := Run(t.Context(), cfg)
				for err == nil && (res.Opened == 0 || res.Frames == 0 && certificate) && cfg.Duration < 10*time.Second {
					cfg.Duration *= 2 // a busy machine has not come to it
					res, err = Run(t.Context(), cfg)
				}
				if err != nil || res.Opened == 0 || (res.Frames > 0) != certificate {
					t.Errorf("%+v, %v", res, err)
				}
				c, err := tls.Dial("tcp", to, hostile)
				if err != nil {
					t.Fatalf("afterwards: %v", err)
				}
				c.Close()
			})
		}
	}
}

// victim serves HBONE until the test ends, and connects every tunnel.
func victim(t *testing.T, cert *identity.Certificate) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := hbone.NewServer(hbone.ServerConfig{
		Config: hbone.Config{Guard: hbone.NewGuard()},
		TLS:    func(context.Context) (*tls.Config, error) { return identity.ServerTLS(cert, "cluster.local"), nil },
		Handler: func(ctx context.Context, in *hbone.Inbound) {
			var d net.Dialer
			up, err := d.DialContext(ctx, "tcp", in.Authority)
			if err != nil {
				in.Refuse(503)
				return
			}
			in.Accept(ctx, up.(*net.TCPConn))
		},
		DrainTimeout: time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func TestParse(t *testing.T) {
	var help strings.Builder
	c, err := Parse([]string{"ping", "--to", "10.0.0.2:15008"}, &help)
	if err != nil || c.Kind != "ping" || c.Authority != "10.0.0.2:9000" || c.Download != "10.0.0.2:8080" || c.Connections != 4 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range [][]string{{}, {"ping"}, {"ping", "--to", "x"}, {"ping", "--to", "10.0.0.2:15008", "more"}, {"ping", "--to", "10.0.0.2:15008", "--cert", "/nowhere"}} {
		if _, err := Parse(bad, &help); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	for _, k := range slices.Concat(Kinds(true), Kinds(false)) {
		if !strings.Contains(help.String(), k) {
			t.Errorf("usage does not name %s", k)
		}
	}
	if _, err := Run(t.Context(), Config{Kind: "dance"}); err == nil {
		t.Error("an unknown kind")
	}
}
