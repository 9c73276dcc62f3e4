// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

func (a *app) debugCommand() *cobra.Command {
	var listen, format string
	c := &cobra.Command{
		Use: "debug [DAEMON [PATH]]", Short: "Show the debug pages of daemons, or serve them to a browser",
		Long: "Prints a page that a daemon serves on its loopback: /debug/ unless another is named. Daemons are control, ztunnel.node1,\n" +
			"cni-agent.node1 (node1/ztunnel is the same). Pages come as JSON if they have that form. With --listen the pages of all\n" +
			"daemons are served on an address of this machine until Ctrl-C; it must be a loopback one, for whoever reaches the pages\n" +
			"controls the daemons.",
		Example:           "  lab debug control\n  lab debug ztunnel.node1 connections\n  lab debug node1/ztunnel /debug/pprof/heap > heap.pprof\n  lab debug --listen 127.0.0.1:8000",
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: a.completing(1, daemonWords),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case listen != "" && len(args) > 0:
				return mistake(c, errors.New("debug: --listen serves all daemons: name none"))
			case listen != "":
				return a.serveDebug(c.Context(), listen)
			case len(args) == 0:
				return mistake(c, errors.New("debug: want a daemon, or --listen"))
			}
			path := "/debug/"
			if len(args) > 1 {
				path = args[1]
			}
			return a.debugPage(c.Context(), args[0], path, format)
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "serve the pages on this address: 127.0.0.1:0 chooses a port")
	c.Flags().StringVar(&format, "format", "json", "json or html, of pages that have both")
	return c
}

// daemonsOf lists the daemons of a lab, as logs and pages call them.
func daemonsOf(l *lab.Lab) []string {
	names := []string{lab.DaemonControl}
	for _, node := range l.Nodes() {
		names = append(names, lab.DaemonZtunnel+"."+node, lab.DaemonCNIAgent+"."+node)
	}
	return names
}

func daemonWords(_ *cobra.Command, l *lab.Lab) []string { return daemonsOf(l) }

// parseDaemon reads "ztunnel.node1", "node1/ztunnel" or "control".
func parseDaemon(l *lab.Lab, name string) (node, daemon string, err error) {
	if before, after, ok := strings.Cut(name, "/"); ok {
		name = after + "." + before
	}
	if !slices.Contains(daemonsOf(l), name) {
		return "", "", usageError{err: fmt.Errorf("no daemon %q; there are: %s", name, strings.Join(daemonsOf(l), ", ")), command: "debug"}
	}
	daemon, node, _ = strings.Cut(name, ".")
	return node, daemon, nil
}

func (a *app) debugPage(ctx context.Context, name, path, format string) error {
	accept := map[string]string{"json": "application/json", "html": "text/html"}[format]
	if accept == "" {
		return usageError{err: fmt.Errorf("--format %s: want json or html", format), command: "debug"}
	}
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	node, daemon, err := parseDaemon(l, name)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(path, "/") {
		path = "/debug/" + path
	}
	res, err := l.OpenPage(ctx, lab.Page{Node: node, Daemon: daemon, Path: path, Accept: accept})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(a.stdout, res.Body); err != nil {
		return fmt.Errorf("get page: %w", err)
	}
	return nil
}

// serveDebug serves the daemons' pages below their names until ctx ends. Links of a page lead to pages of the same daemon:
// each daemon has a port of its own, and the address that was asked for lists them.
func (a *app) serveDebug(ctx context.Context, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return usageError{err: fmt.Errorf("--listen %s: %w", address, err), command: "debug"}
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return usageError{err: fmt.Errorf("--listen %s: want a loopback address", address), command: "debug"}
	}
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	links, at, err := serveDaemons(ctx, g, l, host, address)
	if err == nil {
		err = a.print(links, func() { fmt.Fprintf(a.stdout, "http://%s/\n", at) })
	}
	if err != nil {
		cancel()
		return errors.Join(err, g.Wait())
	}
	a.progress("the daemons' pages are served until Ctrl-C")
	return g.Wait()
}

// serveDaemons returns where the pages of each daemon are, and where they are listed.
func serveDaemons(ctx context.Context, g *errgroup.Group, l *lab.Lab, host, address string) (links map[string]string, at net.Addr, err error) {
	links = map[string]string{}
	for _, name := range daemonsOf(l) {
		node, daemon, err := parseDaemon(l, name)
		if err != nil {
			return nil, nil, err
		}
		at, err := serveHTTP(ctx, g, net.JoinHostPort(host, "0"), localOnly(&httputil.ReverseProxy{
			Transport: l.Daemon(node, daemon).Admin(),
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host = "http", fmt.Sprintf("localhost:%d", lab.AdminPort(daemon))
			},
		}))
		if err != nil {
			return nil, nil, err
		}
		links[name] = "http://" + at.String() + "/debug/"
	}
	at, err = serveHTTP(ctx, g, address, localOnly(debugIndex(daemonsOf(l), links)))
	return links, at, err
}

// localOnly keeps web sites that somebody visits meanwhile from reaching the daemons through the browser: by forms, and by
// names of theirs that lead here.
func localOnly(h http.Handler) http.Handler {
	h = http.NewCrossOriginProtection().Handler(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "call this host by its loopback address", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func debugIndex(names []string, links map[string]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>lab</title></head><body><h1>Daemons</h1><ul>\n")
		for _, n := range names {
			fmt.Fprintf(w, "<li><a href=\"%s\">%s</a></li>\n", links[n], n)
		}
		fmt.Fprint(w, "</ul></body></html>\n")
	})
}

// serveHTTP serves h in g until ctx ends.
func serveHTTP(ctx context.Context, g *errgroup.Group, address string, h http.Handler) (net.Addr, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve pages: %w", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		stop := context.AfterFunc(ctx, func() { _ = s.Close() })
		defer stop()
		if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve pages: %w", err)
		}
		return nil
	})
	return ln.Addr(), nil
}
