// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Impostor serves l until ctx ends: it shakes hands as a proxy of the mesh would, with c's certificate, and then speaks no
// HTTP/2. It closes l.
func Impostor(ctx context.Context, l net.Listener, c *tls.Config) error {
	server := &tls.Config{Certificates: c.Certificates, MinVersion: tls.VersionTLS13, NextProtos: c.NextProtos, ClientAuth: tls.RequireAnyClientCert}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var g sync.WaitGroup
	defer g.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		g.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			_, _ = io.WriteString(tls.Server(conn, server), "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
		})
	}
}

// ParseImpostor reads the arguments of `workload impostor`.
func ParseImpostor(args []string, stderr io.Writer) (certDir, listen string, err error) {
	fs := flags("workload impostor [flags]", stderr)
	fs.StringVar(&certDir, "cert", "", "`directory` that `workload cert` has written")
	fs.StringVar(&listen, "listen", ":15008", "`address` to listen on")
	if err := fs.Parse(args); err != nil {
		return "", "", err
	}
	if certDir == "" || fs.NArg() > 0 {
		fs.Usage()
		return "", "", errors.New("want --cert and no argument")
	}
	return certDir, listen, nil
}
