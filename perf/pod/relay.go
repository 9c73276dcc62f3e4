// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// What a relay does with the bytes.
const (
	RelayPlain     = "plain"
	RelayTLSClient = "tls-client" // towards its target in TLS
	RelayTLSServer = "tls-server" // from its clients in TLS
)

// relayBuffer is what io.Copy takes by itself.
const relayBuffer = 32 << 10

// Identities of the two ends of bare TLS. The test root signs them, as it would sign a ztunnel's.
var (
	relayClient = mesh.Identity{TrustDomain: "cluster.local", Namespace: "plain", ServiceAccount: "client"}
	relayServer = mesh.Identity{TrustDomain: "cluster.local", Namespace: "plain", ServiceAccount: "server"}
)

// Relay copies each connection on a port of p to the target of the same index, until in ends: what a proxy costs that
// does nothing but copy, or nothing but copy and encrypt. It copies through a buffer of 32 KiB, both ways at once.
func Relay(ctx context.Context, kind string, p Ports, targets []string, in io.Reader, out io.Writer) error {
	if len(targets) != p.Count {
		return fmt.Errorf("relay: %d ports, %d targets", p.Count, len(targets))
	}
	r := &relayer{kind: kind}
	if err := r.certify(ctx); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return serveWith(ctx, p, in, out, func(ctx context.Context, port int, c *net.TCPConn) { _ = r.carry(ctx, c, targets[port]) })
}

type relayer struct {
	kind   string
	config *tls.Config
}

func (r *relayer) certify(ctx context.Context) error {
	switch r.kind {
	case RelayPlain:
		return nil
	case RelayTLSClient:
		cert, err := identity.NewFakeCA().Sign(ctx, relayClient)
		if err != nil {
			return err
		}
		r.config = identity.ClientTLS(cert, []mesh.Identity{relayServer})
	case RelayTLSServer:
		cert, err := identity.NewFakeCA().Sign(ctx, relayServer)
		if err != nil {
			return err
		}
		r.config = identity.ServerTLS(cert, relayServer.TrustDomain)
	default:
		return fmt.Errorf("unknown kind %q", r.kind)
	}
	return nil
}

// half is a connection that can end in one direction.
type half interface {
	net.Conn
	CloseWrite() error
}

func (r *relayer) carry(ctx context.Context, c *net.TCPConn, target string) error {
	var d net.Dialer
	d.SetMultipathTCP(false)
	to, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = to.Close() })
	defer stop()
	down, up := half(c), half(to.(*net.TCPConn))
	switch r.kind {
	case RelayTLSClient:
		t := tls.Client(up, r.config)
		err, up = t.HandshakeContext(ctx), t
	case RelayTLSServer:
		t := tls.Server(down, r.config)
		err, down = t.HandshakeContext(ctx), t
	}
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	var back error
	group.Go(func() { back = oneWay(down, up) })
	err = oneWay(up, down)
	group.Wait()
	return errors.Join(err, back)
}

// oneWay hides everything of both ends but Read and Write: the kernel would move a plain relay's bytes by itself.
func oneWay(to, from half) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, relayBuffer))
	if err != nil {
		_ = to.Close()
		_ = from.Close()
		return err
	}
	return to.CloseWrite()
}
