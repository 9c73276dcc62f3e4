// SPDX-License-Identifier: Apache-2.0

// Command workload is the application inside a lab's pods: `workload serve` is an echo server that reports what it saw,
// `workload call` a caller that prints what came of its calls as JSON. What they do is in package workload.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/ambientlab/ambientlab/topologies/workload"
	"github.com/ambientlab/ambientlab/topologies/workload/attack"
	"github.com/ambientlab/ambientlab/topologies/workload/credential"
	"github.com/ambientlab/ambientlab/topologies/workload/forge"
	"github.com/ambientlab/ambientlab/topologies/workload/session"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const usage = `usage: workload serve [flags]    serve echo ports until SIGTERM; prints "ready" once all are bound
       workload call [flags] URL print the outcome of calls as JSON; exit 1 if one failed
       workload cert [flags]     write a certificate of the pod's own identity, as its token gets it from the mesh's authority
       workload resolve [flags] NAME
                                 print a name server's answer as JSON; exit 1 if there was none
       workload dns [flags]      be a name server for tests until SIGTERM; prints "ready"
       workload attack KIND      be a hostile HTTP/2 peer; print how that went as JSON
       workload look PATH...     print what the pod sees at each path as JSON
       workload cat FILE...      print files of the pod
       workload write FILE       replace a file of the pod by what stands on stdin
       workload connect [flags] HOST:PORT
                                 send one CONNECT made by hand, with that certificate; prints the answer as JSON
       workload syn [flags] ADDRESS:PORT
                                 send one TCP SYN past the kernel's rules; prints what came back as JSON
       workload impostor [flags] take part in mutual TLS with that certificate, and then speak no HTTP/2; prints "ready"
       workload tunnel call|serve  be an HBONE peer with the certificate in the order on stdin
       workload discovery        be a control plane that sends what it is told to on stdin
       workload counters         print the kernel's TCP counters of the pod as JSON
       workload flush            remove every nftables rule of the pod
       workload fill N           put N connections into the pod's conntrack table, print how many it took, and take them out
                                 when standard input ends
       workload under MARK COMMAND…  become COMMAND, with a mark
       workload kill MARK        kill all processes with that mark
       workload elsewhere NETNS COMMAND…
                                 become COMMAND in the network namespace at that path, or in a new one: "new"
       workload session          run commands as an SSH server on standard input and output
All but look, cat, write, tunnel, discovery, counters, flush, fill, under, kill, elsewhere and session have --help.`

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		_, _ = fmt.Fprintln(stderr, usage)
		return 2
	}
	switch args[0] {
	case "serve":
		return fail(stderr, serve(ctx, args[1:], stdout, stderr))
	case "call":
		return fail(stderr, call(ctx, args[1:], stdout, stderr))
	case "cert":
		return fail(stderr, cert(ctx, args[1:], stdout, stderr))
	case "connect":
		return fail(stderr, connect(ctx, args[1:], stdout, stderr))
	case "impostor":
		return fail(stderr, impostor(ctx, args[1:], stdout, stderr))
	case "syn":
		return fail(stderr, syn(args[1:], stdout, stderr))
	case "resolve":
		return fail(stderr, resolve(ctx, args[1:], stdout, stderr))
	case "dns":
		return fail(stderr, nameServer(ctx, args[1:], stdout, stderr))
	case "attack":
		return fail(stderr, assault(ctx, args[1:], stdout, stderr))
	case "look":
		return fail(stderr, json.NewEncoder(stdout).Encode(workload.LookAt(args[1:])))
	case "cat", "write":
		return fail(stderr, files(args, os.Stdin, stdout))
	case "tunnel":
		return fail(stderr, tunnel(ctx, args[1:], os.Stdin, stdout))
	case "discovery":
		return fail(stderr, discover(ctx, os.Stdin, stdout))
	case "counters", "flush", "fill":
		return fail(stderr, kernel(args, os.Stdin, stdout))
	case workload.UnderCommand, workload.KillCommand, workload.ElsewhereCommand:
		return fail(stderr, under(args, stderr))
	case workload.SessionCommand:
		return fail(stderr, session.Serve(os.Stdin, os.Stdout, workload.Direct))
	case "help", "-h", "--help":
		_, _ = fmt.Fprintln(stdout, usage)
		return 0
	}
	return fail(stderr, usageError{fmt.Errorf("unknown command %q\n%s", args[0], usage)})
}

type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// errFailed says that the document on stdout tells of a failure: there is no more to say.
var errFailed = errors.New("a call failed")

func fail(stderr io.Writer, err error) int {
	var u usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errFailed):
		return 1
	case errors.As(err, &u):
		_, _ = fmt.Fprintln(stderr, err)
		return 2
	}
	_, _ = fmt.Fprintln(stderr, "workload:", err)
	return 1
}

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := workload.ParseServe(args, stderr)
	if err != nil {
		return usageError{err}
	}
	cfg.Workload, cfg.Namespace, cfg.IP = os.Getenv("POD_NAME"), os.Getenv("POD_NAMESPACE"), os.Getenv("POD_IP")
	if addrs := workload.HostAddrs(); cfg.IP == "" && len(addrs) > 0 {
		cfg.IP = addrs[0]
	}
	cfg.Log = slog.New(slog.NewTextHandler(stderr, nil))
	s := workload.NewServer(cfg)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
		if !cfg.Unready {
			_, _ = fmt.Fprintln(stdout, "ready")
		}
		return <-done
	case err := <-done:
		return err
	}
}

func cert(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, out, err := credential.Parse(args, stderr)
	if err != nil {
		return usageError{err}
	}
	c, err := credential.Fetch(ctx, cfg)
	if err != nil {
		return err
	}
	if err := credential.Save(out, c); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, c.Identity)
	return err
}

func connect(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, err := forge.ParseConnect(args, stderr)
	if err != nil {
		return usageError{err}
	}
	tls, err := credential.Load(c.CertDir)
	if err != nil {
		return err
	}
	answer, err := forge.Connect(ctx, tls, c.Request)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(answer)
}

func impostor(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	dir, addr, err := forge.ParseImpostor(args, stderr)
	if err != nil {
		return usageError{err}
	}
	tls, err := credential.Load(dir)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(stdout, "ready"); err != nil {
		return err
	}
	return forge.Impostor(ctx, l, tls)
}

func syn(args []string, stdout, stderr io.Writer) error {
	s, err := forge.ParseSYN(args, stderr)
	if err != nil {
		return usageError{err}
	}
	reply, err := s.Send()
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(reply)
}

func assault(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := attack.Parse(args, stderr)
	if err != nil {
		return usageError{err}
	}
	res, err := attack.Run(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(res)
}

func call(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, url, err := workload.ParseCall(args, stderr)
	if err != nil {
		return usageError{err}
	}
	if o.UntilEOF {
		ended := make(chan struct{})
		go func() { // a read that cannot be called off: it ends with the process
			_, _ = io.Copy(io.Discard, os.Stdin)
			close(ended)
		}()
		o.Stop = ended
		_, _ = fmt.Fprintln(stderr, "calling")
	}
	res, err := workload.Do(ctx, url, o)
	if err != nil {
		return usageError{err}
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(res); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if res.Failed > 0 || res.OK == 0 {
		return errFailed
	}
	return nil
}

func resolve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, name, err := workload.ParseResolve(args, stderr)
	if err != nil {
		return usageError{err}
	}
	r, err := workload.Resolve(ctx, name, o)
	if err != nil {
		return usageError{err}
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if r.Failed() != nil {
		return errFailed
	}
	return nil
}

func nameServer(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	n, err := workload.ParseNameServer(args, stderr)
	if err != nil {
		return usageError{err}
	}
	return n.Run(ctx, func() { _, _ = fmt.Fprintln(stdout, "ready") })
}
