// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

const hbonePort = "10.77.0.3:15008"

// denyThief refuses one service account.
const denyThief = `
policies:
- {name: no-thief, namespace: shop, scope: Namespace, action: Deny, rules: [[[{principals: [{exact: cluster.local/ns/shop/sa/thief}]}]]]}
`

// TestForeignClients: HTTP/2 clients that are not ours open tunnels through the real binary, with certificates of its
// authority, and get the answers that they should (protocols A1.3).
func TestForeignClients(t *testing.T) {
	web, cart := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: web, Name: "eth0", Addresses: []string{"10.77.0.2/24"}}, nstest.End{NS: cart, Name: "eth0", Addresses: []string{"10.77.0.3/24"}})
	d := startDaemon(t)
	d.enrol(t, "cart", cart)
	d.addConfig(t, denyThief)
	echo, err := cart.ListenTCP(t.Context(), netip.AddrPortFrom(cartAddr, 8080), netns.SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveAll(echo, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	}()
	t.Cleanup(func() { echo.Close(); <-served })

	for _, c := range []struct {
		name, account, authority string
		want                     int
	}{
		{"200: an application", "web", "10.77.0.3:8080", 200},
		{"400: another pod's address", "web", "10.77.0.9:8080", 400},
		{"400: no authority that one can parse", "web", "10.77.0.3", 400},
		{"401: a policy denies it", "thief", "10.77.0.3:8080", 401},
		{"503: nobody listens", "web", "10.77.0.3:8081", 503},
		{"503: a proxy's own port", "web", "10.77.0.3:15001", 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			eventually(t, "the answer", func() bool {
				got, err := connectByStock(t, web, c.account, c.authority)
				if err != nil || got != c.want {
					t.Logf("answer %d, %v", got, err)
				}
				return err == nil && got == c.want
			})
		})
	}
	t.Run("400: curl, with GET", func(t *testing.T) { curl(t, web, "400") })
}

// connectByStock opens a tunnel with net/http's Transport and, if it can, checks that bytes come back.
func connectByStock(t *testing.T, from *netns.NS, account, authority string) (int, error) {
	cert := certificate(t, account)
	cfg := &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // a SPIFFE certificate has no host name
	}
	tr := &http.Transport{
		ForceAttemptHTTP2: true,
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			c, err := from.DialTCP(ctx, netip.MustParseAddrPort(addr), netns.SocketOptions{})
			if err != nil {
				return nil, err
			}
			tc := tls.Client(c, cfg)
			return tc, tc.HandshakeContext(ctx)
		},
	}
	defer tr.CloseIdleConnections()
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	resp, err := tr.RoundTrip((&http.Request{
		Method: http.MethodConnect, Host: authority, URL: &url.URL{Scheme: "https", Host: hbonePort}, Header: http.Header{}, Body: r,
	}).WithContext(ctx))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return resp.StatusCode, nil
	}
	const said = "hello, tunnel"
	if _, err := io.WriteString(w, said); err != nil {
		return 0, err
	}
	w.Close()
	back, err := io.ReadAll(resp.Body)
	if err == nil && string(back) != said {
		err = errors.New("echo " + string(back))
	}
	return resp.StatusCode, err
}

// curl, whose HTTP/2 is nghttp2's, can ask for a page only: tunnels are not for that.
func curl(t *testing.T, from *netns.NS, want string) {
	bin, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed (Debian package curl; make deps)")
	}
	dir := t.TempDir()
	cert := certificate(t, "web")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	for name, b := range map[string][]byte{"cert.pem": chain, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(bin, "--silent", "--show-error", "--insecure", "--http2", "--max-time", "5", "--output", "/dev/null",
		"--write-out", "%{http_version} %{http_code}", "--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem"), "https://"+hbonePort+"/")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	nstest.In(t, from, cmd.Start)
	if err := cmd.Wait(); err != nil || out.String() != "2 "+want {
		t.Errorf("curl: %q, %v", out.String(), err)
	}
}

func certificate(t *testing.T, account string) tls.Certificate {
	t.Helper()
	c, err := identity.NewFakeCA().Sign(t.Context(), mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: account})
	if err != nil {
		t.Fatal(err)
	}
	return c.TLS
}

// addConfig appends to the document that the daemon watches.
func (d *daemon) addConfig(t *testing.T, more string) {
	t.Helper()
	for _, v := range d.cmd.Env {
		path, ok := strings.CutPrefix(v, "LOCAL_XDS_PATH=")
		if !ok {
			continue
		}
		next := path + ".next"
		if err := os.WriteFile(next, []byte(meshDocument+more), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("the daemon reads no file")
}
