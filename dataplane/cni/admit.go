// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
	"github.com/ambientlab/ambientlab/dataplane/netns"
)

const (
	maxRequest   = 1 << 20
	drainTimeout = 5 * time.Second
	undoTimeout  = 5 * time.Second
)

// ListenPlugin makes the socket that the plugin dials, for root alone. One that an earlier agent left is replaced.
func ListenPlugin(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen for the plugin: %w", err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("listen for the plugin: %s is not a socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen for the plugin: %w", err)
	}
	// The file gets the socket's mode when it is bound, so that nobody else can dial it in between.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the plugin: %w", err)
	}
	return l, nil
}

// servePlugin answers the plugin until ctx ends.
func (a *Agent) servePlugin(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+ambient.AddPath, a.handleAdd)
	return serveUnix(ctx, l, mux)
}

// serveUnix serves a socket of the plugin's until ctx ends, and closes it.
func serveUnix(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve the plugin: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // it is too late for the requests that remain
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the plugin: %w", err)
	}
	return nil
}

func (a *Agent) handleAdd(w http.ResponseWriter, r *http.Request) {
	status := http.StatusOK
	var req ambient.AddRequest
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req)
	switch {
	case err != nil:
		status = http.StatusBadRequest
	default:
		ctx, cancel := context.WithTimeout(r.Context(), a.cfg.AdmitTimeout)
		err = a.admit(ctx, req)
		cancel()
		if err != nil {
			status = http.StatusInternalServerError
		}
	}
	a.cfg.Metrics.PluginRequest(status)
	if err != nil {
		a.cfg.Log.Warn("pod not admitted", "pod", req.PodNamespace+"/"+req.PodName, "error", err)
		http.Error(w, err.Error(), status)
	}
}

// admit enrols a pod that is about to start. If that fails nothing is left of it, for the runtime throws the pod's network
// away and makes it anew.
func (a *Agent) admit(ctx context.Context, req ambient.AddRequest) error {
	p, namespaces, err := a.awaitPod(ctx, req)
	if err != nil {
		return err
	}
	if v := a.decide(p, namespaces); !v.Enrol {
		a.cfg.Log.Info("not enrolled", "pod", refOf(p), "why", v.Why)
		return nil
	}
	ns, err := a.cfg.OpenNetns(req.Netns)
	if err != nil {
		return fmt.Errorf("enrol %s: %w", refOf(p), err)
	}
	defer ns.Close()
	release, err := a.locks.take(ctx, string(p.UID))
	if err != nil {
		return fmt.Errorf("enrol %s: another request for it is being served: %w", refOf(p), err)
	}
	defer release()
	if err := a.enrolPatiently(ctx, p, ns, addresses(req.IPs)); err != nil {
		a.undo(ctx, p, ns)
		return err
	}
	return nil
}

// enrolPatiently tries until ctx ends: a proxy that is being replaced is back in a moment.
func (a *Agent) enrolPatiently(ctx context.Context, p *corev1.Pod, ns *netns.NS, addrs string) error {
	for wait := a.cfg.BackoffMin; ; wait = min(2*wait, a.cfg.BackoffMax) {
		err := a.enrol(ctx, p, ns, addrs)
		if err == nil || errors.Is(err, ErrHostNetwork) {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// undo leaves neither rules nor a proxy in the namespace. The annotation stays at pending, to be seen.
func (a *Agent) undo(ctx context.Context, p *corev1.Pod, ns *netns.NS) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	if a.cfg.HostNetns == nil || !a.cfg.HostNetns.Same(ns) {
		errs = append(errs, a.cfg.Rules.Remove(ctx, ns))
	}
	if _, known := a.state(string(p.UID)); known {
		errs = append(errs, a.leave(ctx, string(p.UID)))
		errs = append(errs, a.cfg.Proxies.Del(ctx, string(p.UID)))
		a.dropState(string(p.UID))
	}
	if err := errors.Join(errs...); err != nil {
		a.cfg.Log.Warn("pod that was not admitted is not undone", "pod", refOf(p), "error", err)
	}
}

// awaitPod waits until the pod that the plugin means is known: by uid, if the plugin names one, for a pod of the same name
// may have been there before.
func (a *Agent) awaitPod(ctx context.Context, req ambient.AddRequest) (*corev1.Pod, map[string]*corev1.Namespace, error) {
	for {
		changed := a.cfg.Objects.Changed()
		o := a.cfg.Objects.Load()
		p := o.Pods[req.PodNamespace+"/"+req.PodName]
		why := errors.New("it is not known")
		switch {
		case p == nil:
		case p.UID == "":
			why = errors.New("it has no uid")
		case req.UID != "" && runtimeUID(p) != req.UID:
			why = fmt.Errorf("its uid is %s, the plugin means %s", p.UID, req.UID)
		case p.Spec.NodeName != a.cfg.Node:
			why = fmt.Errorf("it is on node %q, this is %q", p.Spec.NodeName, a.cfg.Node)
		default:
			return p, o.Namespaces, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("look up pod %s/%s: %w: %w", req.PodNamespace, req.PodName, why, ctx.Err())
		}
	}
}
