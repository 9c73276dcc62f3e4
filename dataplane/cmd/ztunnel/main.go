// SPDX-License-Identifier: Apache-2.0

// Command ztunnel runs the node proxy. It is configured by environment variables alone, with upstream's names and defaults,
// so that either binary can stand in for the other; --help lists them. Access log lines go to stdout, everything else to
// stderr.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/ztunnel"
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

//go:embed usage.txt
var usage string

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
	case len(args) == 1 && (args[0] == "--help" || args[0] == "-h" || args[0] == "help"):
		fmt.Fprint(stdout, usage)
		return nil
	case len(args) == 0, len(args) == 2 && args[0] == "proxy" && args[1] == "ztunnel":
	default:
		return fmt.Errorf("%w: unknown arguments %q; all settings are environment variables, see --help", errUsage, args)
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
	cfg.Processors, cfg.Relax = runtime.GOMAXPROCS(0), giveBack
	cfg.Process = admin.Process{Args: args, Environ: environ}
	slog.SetDefault(cfg.Log)
	secrets, err := identity.OpenKeyLog(s.keyLog, cfg.Log)
	if err != nil {
		return err
	}
	if secrets != nil {
		defer secrets.Close()
		cfg.KeyLog = secrets
	}
	z, err := ztunnel.New(cfg)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return serve(ctx, z, newProcessors(cfg.Processors))
}

// serve runs z, on as many processors as it needs.
func serve(ctx context.Context, z *ztunnel.Ztunnel, p *processors) error {
	looking, stop := context.WithCancel(context.WithoutCancel(ctx))
	var looks sync.WaitGroup
	looks.Go(func() { p.run(looking, hbone.BulkBytes) })
	defer looks.Wait()
	defer stop()
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
