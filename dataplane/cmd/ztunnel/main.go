// SPDX-License-Identifier: Apache-2.0

// Command ztunnel runs the node proxy. It is configured by environment variables alone, with upstream's names and defaults,
// so that either binary can stand in for the other. Access log lines go to stdout, everything else to stderr.
//
// Waits for which upstream has no setting have names of our own; each takes a duration such as 500ms or 2s:
//
//	LOCAL_WORKLOAD_TIMEOUT   5s         a connection waits for its own pod to be known
//	CONNECT_TIMEOUT          10s        TCP connect, and the handshake of a tunnel's connection
//	PROXY_RETRY_INTERVAL     5s         between attempts to start a pod's proxy that failed
//	HBONE_PING_INTERVAL      10s        between PINGs on a tunnel's connection
//	HBONE_PING_TIMEOUT       20s        until a peer that does not answer them is given up
//	CERT_BACKOFF_MIN, _MAX   1s, 150s   between attempts to get a certificate
//	XDS_BACKOFF_MIN, _MAX    10ms, 15s  between streams to the control plane
//	ZDS_BACKOFF_MIN, _MAX    10ms, 15s  between connections to the node agent
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/ambientlab/ambientlab/dataplane/ztunnel"
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

// version is set by the linker for a release.
var version = "dev"

// errUsage marks errors of whoever started the process.
var errUsage = errors.New("bad configuration")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	switch {
	case err == nil:
		return
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "ztunnel:", err)
		os.Exit(exitUsage)
	default:
		fmt.Fprintln(os.Stderr, "ztunnel:", err)
		os.Exit(exitFailure)
	}
}

func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	// Upstream's image starts its binary with the arguments "proxy ztunnel".
	switch {
	case len(args) == 1 && args[0] == "version":
		fmt.Fprintln(stdout, version)
		return nil
	case len(args) == 0, len(args) == 2 && args[0] == "proxy" && args[1] == "ztunnel":
	default:
		return fmt.Errorf("%w: unknown arguments %q; all settings are environment variables", errUsage, args)
	}
	s, err := parseEnviron(environ, runtime.NumCPU())
	if err != nil {
		return fmt.Errorf("%w:\n%w", errUsage, err)
	}
	tune(s.threads)
	var level slog.LevelVar
	level.Set(s.logLevel)
	cfg := s.ztunnel
	cfg.Version, cfg.AccessLog, cfg.AccessLogJSON = version, stdout, s.logJSON
	cfg.Log, cfg.Level = logger(stderr, &level, s.logJSON), &level
	cfg.Relax = giveBack
	slog.SetDefault(cfg.Log)
	z, err := ztunnel.New(cfg)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return z.Run(ctx)
}

func logger(w io.Writer, level slog.Leveler, asJSON bool) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

func tune(threads int) {
	runtime.GOMAXPROCS(threads)
	debug.SetGCPercent(gcPercent)
}
