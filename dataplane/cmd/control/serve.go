// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

// check validates the objects and touches nothing.
func check(o *options, stdout io.Writer) error {
	objects, problems, err := file.Read(o.objects)
	if err != nil {
		return err
	}
	mesh := control.Compile(objects, o.Settings)
	problems = append(problems, mesh.Problems...)
	for _, p := range problems {
		fmt.Fprintln(stdout, p.Error())
	}
	fmt.Fprintf(stdout, "%d objects: %d workloads, %d services, %d policies, %d problems\n",
		objects.Len(), len(mesh.Workloads), len(mesh.Services), len(mesh.Policies), len(problems))
	if len(problems) > 0 {
		return fmt.Errorf("check %s: %d problems", o.objects, len(problems))
	}
	return nil
}

func serve(ctx context.Context, o *options, stderr io.Writer) error {
	log := o.logger(stderr)
	authority, err := identity.LoadOrCreateAuthority(o.caDir, o.TrustDomain)
	if err != nil {
		return err
	}
	if err := writeRoots(o.rootOut, authority.RootsPEM()); err != nil {
		return err
	}
	keys := control.NewJWKS(o.jwks, o.issuer)
	if err := keys.Check(); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen for proxies (--listen chooses another address): %w", err)
	}
	secrets, err := identity.OpenKeyLog(o.keyLog, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	src := file.New(o.objects, log)
	cfg := control.Config{
		Settings: o.Settings, Source: src, Authority: authority, Authenticator: keys, Listener: listener,
		ServingNames: o.serving, TrustedAccounts: o.trusted, CertTTL: o.certTTL, StatusDir: o.statusDir, Log: log,
		Version: version, Process: admin.Process{Args: o.args, Environ: os.Environ()},
	}
	if secrets != nil {
		defer secrets.Close()
		cfg.KeyLog = secrets
	}
	server, err := control.New(cfg)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return src.Run(ctx) })
	g.Go(func() error { return server.Run(ctx) })
	g.Go(func() error {
		authority.Watch(ctx, log, func() { followAuthority(authority, o.rootOut, log) })
		return nil
	})
	g.Go(func() error { return serveHTTP(ctx, "--http", o.http, server.Handler()) })
	g.Go(func() error { return serveHTTP(ctx, "--ready", o.ready, readyOnly(server.Ready())) })
	log.Info("control plane started", "listen", listener.Addr().String(), "objects", o.objects, "trust_domain", o.TrustDomain, "cluster", o.ClusterID)
	err = g.Wait()
	log.Info("control plane stopped")
	return err
}

func readyOnly(h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /ready", h)
	return mux
}

// serveHTTP serves until ctx ends; "" serves nothing.
func serveHTTP(ctx context.Context, option, address string, h http.Handler) error {
	if address == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for HTTP (%s chooses another address): %w", option, err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", address, err)
	}
	return nil
}

// followAuthority makes a change of the authority known: proxies watch the bundle, and ask for new certificates.
func followAuthority(a *identity.Authority, rootOut string, log *slog.Logger) {
	now := a.State()
	log.Info("authority changed", "version", now.Version, "issuer", now.Issuer.Subject.String(), "serial", now.Issuer.SerialNumber.String(), "roots", len(now.Roots))
	if err := writeRoots(rootOut, a.RootsPEM()); err != nil {
		log.Error("proxies do not learn of the change", "error", err)
	}
}

// writeRoots replaces path as a whole, so that nobody reads half a bundle.
func writeRoots(path string, pem []byte) error {
	if path == "" {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.WriteFile(tmp, pem, 0o644); err != nil { //nolint:gosec // roots are for everyone to read
		return fmt.Errorf("write roots: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write roots: %w", err)
	}
	return nil
}
