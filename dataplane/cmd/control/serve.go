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
	"github.com/ambientlab/ambientlab/dataplane/control/cluster"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

// check validates the objects and touches nothing.
func check(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	objects, problems, from, err := readOnce(ctx, o, stderr)
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
		return fmt.Errorf("check %s: %d problems", from, len(problems))
	}
	return nil
}

func readOnce(ctx context.Context, o *options, stderr io.Writer) (objects *source.Objects, problems []source.Problem, from string, err error) {
	if !o.cluster() {
		objects, problems, err = file.Read(o.objects)
		return objects, problems, o.objects, err
	}
	api, err := kube.Connect(o.kubeconfig, cluster.Manager)
	if err != nil {
		return nil, nil, "", err
	}
	src, err := kube.New(api, kube.Options{Log: o.logger(stderr)})
	if err != nil {
		return nil, nil, "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return src.Run(ctx) })
	select {
	case <-src.Ready():
	case <-ctx.Done():
		err = ctx.Err()
	}
	cancel()
	return src.Load(), src.Problems(), api.Host(), errors.Join(err, g.Wait())
}

func serve(ctx context.Context, o *options, stderr io.Writer) error {
	log := o.logger(stderr)
	parts, err := o.parts(ctx, log)
	if err != nil {
		return err
	}
	if err := writeRoots(o.rootOut, parts.authority.RootsPEM()); err != nil {
		return err
	}
	caDir := o.caDir
	if caDir != "" { // for those who ask, and may be elsewhere
		if caDir, err = filepath.Abs(caDir); err != nil {
			return err
		}
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen for proxies (--listen chooses another address): %w", err)
	}
	secrets, err := identity.OpenKeyLog(o.keyLog, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	cfg := control.Config{
		Settings: o.Settings, Source: parts.source, Authority: parts.authority, AuthorityDir: caDir, Authenticator: parts.tokens, Listener: listener,
		ServingNames: o.serving, TrustedAccounts: o.trusted, CertTTL: o.certTTL, Statuses: parts.statuses, Log: log,
		Version: version, Process: admin.Process{Args: o.args, Environ: os.Environ()}, Metrics: parts.metrics,
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
	for _, run := range parts.run {
		g.Go(func() error { return run(ctx) })
	}
	g.Go(func() error { return parts.source.Run(ctx) })
	g.Go(func() error { return server.Run(ctx) })
	g.Go(func() error {
		parts.authority.Watch(ctx, log, func() { followAuthority(parts, o.rootOut, log) })
		return nil
	})
	g.Go(func() error { return serveHTTP(ctx, "--http", o.http, server.Handler()) })
	g.Go(func() error { return serveHTTP(ctx, "--ready", o.ready, readyOnly(server.Ready())) })
	log.Info("control plane started", "listen", listener.Addr().String(), "objects", parts.from, "trust_domain", o.TrustDomain, "cluster", o.ClusterID)
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
func followAuthority(parts *parts, rootOut string, log *slog.Logger) {
	a := parts.authority
	now := a.State()
	log.Info("authority changed", "version", now.Version, "issuer", now.Issuer.Subject.String(), "serial", now.Issuer.SerialNumber.String(), "roots", len(now.Roots))
	if parts.roots != nil {
		parts.roots.Set(a.RootsPEM())
	}
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
