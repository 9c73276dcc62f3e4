// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Daemon implements lab.Driver.
func (d *Driver) Daemon(node, name string) lab.Daemon {
	if node == "" && name == lab.DaemonAPIServer {
		return &apiServer{d}
	}
	return &daemon{d: d, key: key{node, name}}
}

type daemon struct {
	d   *Driver
	key key
}

// at is the lab and what the daemon is in it.
func (m *daemon) at() (*stand, program, error) {
	s, err := m.d.standing()
	if err != nil {
		return nil, program{}, err
	}
	p, ok := programs[m.key.daemon]
	if !ok {
		return nil, p, fmt.Errorf("no daemon %q: there are %s, %s and %s", m.key.daemon, lab.DaemonZtunnel, lab.DaemonCNIAgent, lab.DaemonControl)
	}
	if p.perNode {
		_, err = s.nodes.find(m.key.node)
	} else if m.key.node != "" {
		err = fmt.Errorf("%s is of the whole cluster, not of node %q", m.key.daemon, m.key.node)
	}
	return s, p, err
}

// do runs what changes the daemon, alone.
func (m *daemon) do(verb string, change func(s *stand, p program) error) error {
	s, p, err := m.at()
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, m.key, err)
	}
	defer s.fleet.hold(m.key)()
	if err := change(s, p); err != nil {
		return fmt.Errorf("%s %s: %w", verb, m.key, err)
	}
	return nil
}

// Stop implements lab.Daemon.
func (m *daemon) Stop(ctx context.Context) error {
	return m.do("stop", func(s *stand, p program) error { return s.fleet.stop(ctx, m.key, p) })
}

// Start implements lab.Daemon. After a signal that ended the daemon kubelet starts it again; Start waits for that.
func (m *daemon) Start(ctx context.Context, env ...string) error {
	return m.do("start", func(s *stand, p program) error { return s.fleet.start(ctx, m.key, p, env) })
}

// Restart implements lab.Daemon.
func (m *daemon) Restart(ctx context.Context, env ...string) error {
	if err := m.Stop(ctx); err != nil {
		return err
	}
	return m.Start(ctx, env...)
}

// Ready implements lab.Daemon: its own check answers, and kubelet has seen that, so that services lead to it.
func (m *daemon) Ready(ctx context.Context) error {
	s, p, err := m.at()
	if err != nil {
		return err
	}
	if err := s.fleet.awaitRunning(ctx, m.key); err != nil {
		return fmt.Errorf("%s is not ready: %w", m.key, err)
	}
	client := &http.Client{Transport: m.Admin(), Timeout: requestWithin}
	err = poll(ctx, func() (string, bool) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://localhost:%d%s", p.ready, p.path), nil)
		if err != nil {
			return err.Error(), false
		}
		res, err := client.Do(req)
		if err != nil {
			return err.Error(), false
		}
		defer res.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(res.Body, 1024))
		return fmt.Sprintf("%s: %s", res.Status, said), res.StatusCode == http.StatusOK
	})
	if err == nil && m.key.daemon == lab.DaemonControl {
		err = s.pods.await(ctx, func() (string, bool) {
			pod := s.fleet.pod(m.key)
			return "kubelet has not seen that it is ready", pod != nil && podReady(pod)
		})
	}
	if err != nil {
		return fmt.Errorf("%s is not ready: %w", m.key, err)
	}
	return nil
}

// requestWithin bounds one question about readiness.
const requestWithin = 2 * time.Second

// stop ends a daemon and keeps it from being started again.
func (f *fleet) stop(ctx context.Context, k key, p program) error {
	if !p.perNode {
		if err := f.scale(ctx, 0, nil); err != nil {
			return err
		}
		return f.awaitNone(ctx, k)
	}
	if err := f.turn(ctx, k, p, runStopped); err != nil {
		return err
	}
	if err := f.dropOwn(ctx, k); err != nil {
		return err
	}
	return f.awaitNone(ctx, k)
}

// turn sets the node's label that says who runs a daemon there.
func (f *fleet) turn(ctx context.Context, k key, p program, who string) error {
	return f.s.api.label(ctx, f.s.nodes.cluster(k.node), map[string]string{p.switchLabel(): who})
}

func (f *fleet) dropOwn(ctx context.Context, k key) error {
	set := &appsv1.DaemonSet{}
	set.Namespace, set.Name = systemNamespace, ownName(k)
	return unlessGone(f.s.api.res.Delete(ctx, set))
}

// start starts a daemon that is stopped, and otherwise waits for the one that runs or is about to.
func (f *fleet) start(ctx context.Context, k key, p program, env []string) error {
	stopped, err := f.stopped(ctx, k, p)
	if err != nil {
		return err
	}
	if !stopped && len(env) > 0 && f.signalled(k) { // kubelet would start it as it was
		if err := f.stop(ctx, k, p); err != nil {
			return err
		}
		stopped = true
	}
	switch {
	case !stopped:
		err = f.hurry(ctx, k)
	case !p.perNode:
		err = f.scale(ctx, 1, env)
	case len(env) == 0:
		err = f.turn(ctx, k, p, "")
	default:
		if err = f.storeSet(ctx, f.own(k, env)); err == nil {
			err = f.turn(ctx, k, p, runOwn)
		}
	}
	if err != nil {
		return err
	}
	return f.awaitRunning(ctx, k)
}

// signalled reports whether a signal of ours ended what runs, or ran last.
func (f *fleet) signalled(k key) bool {
	c := mainStatus(f.pod(k))
	return c != nil && (f.dying(k, c.ContainerID) || c.LastTerminationState.Terminated != nil && f.dying(k, c.LastTerminationState.Terminated.ContainerID))
}

// stopped reports whether Stop has ended a daemon and nobody has started it since.
func (f *fleet) stopped(ctx context.Context, k key, p program) (bool, error) {
	if !p.perNode {
		var d appsv1.Deployment
		err := f.s.api.res.Get(ctx, p.name, systemNamespace, &d)
		return err == nil && d.Spec.Replicas != nil && *d.Spec.Replicas == 0, err
	}
	who, err := f.who(ctx, k, p)
	return who == runStopped, err
}

// hurry ends the rest that kubelet takes before it starts a daemon again that has ended too often: a new pod takes none.
func (f *fleet) hurry(ctx context.Context, k key) error {
	p := f.pod(k)
	c := mainStatus(p)
	if c == nil || c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" {
		return nil
	}
	return unlessGone(f.s.api.res.Delete(ctx, p))
}

// Replace implements lab.Daemon. Calls for several nodes at the same time share a rolling update.
func (m *daemon) Replace(ctx context.Context, env ...string) error {
	return m.do("replace", func(s *stand, p program) error {
		if m.key.daemon != lab.DaemonZtunnel {
			return errors.New("only ztunnel can be replaced")
		}
		return s.fleet.replace(ctx, m.key, p, env)
	})
}

// Status implements lab.Daemon.
func (m *daemon) Status(ctx context.Context) (lab.Status, error) {
	s, _, err := m.at()
	if err != nil {
		return lab.Status{}, err
	}
	list := s.fleet.pods(m.key)
	if len(list) == 0 {
		return lab.Status{ExitCode: s.logs.lastExit(m.key)}, nil
	}
	c := mainStatus(list[0])
	if c == nil || c.State.Running == nil || s.fleet.dead(m.key, c.ContainerID) {
		return lab.Status{ExitCode: s.logs.lastExit(m.key)}, nil
	}
	return lab.Status{Running: true, Started: c.State.Running.StartedAt.Time}, nil
}

// Signal implements lab.Daemon. Without a Host only SIGKILL can be sent: its pod is deleted without a grace period.
func (m *daemon) Signal(ctx context.Context, sig os.Signal) error {
	s, _, err := m.at()
	if err == nil {
		err = s.signal(ctx, m.key, sig)
	}
	if err != nil {
		return fmt.Errorf("signal %s: %w", m.key, err)
	}
	return nil
}

// Logs implements lab.Daemon: everything since Up.
func (m *daemon) Logs(ctx context.Context, since time.Time) (io.ReadCloser, error) {
	s, _, err := m.at()
	if err != nil {
		return nil, err
	}
	if err := s.logs.catchUp(ctx, m.key); err != nil {
		return nil, fmt.Errorf("read log of %s: %w", m.key, err)
	}
	return m.LogsSoFar(ctx, since)
}

// LogsSoFar implements lab.Daemon.
func (m *daemon) LogsSoFar(context.Context, time.Time) (io.ReadCloser, error) {
	s, _, err := m.at()
	if err != nil {
		return nil, err
	}
	r, err := s.logs.open(m.key)
	if err != nil {
		return nil, fmt.Errorf("read log of %s: %w", m.key, err)
	}
	return r, nil
}

// Admin implements lab.Daemon.
func (m *daemon) Admin() http.RoundTripper { return admin{m} }

type admin struct{ m *daemon }

func (a admin) RoundTrip(req *http.Request) (*http.Response, error) {
	s, _, err := a.m.at()
	if err != nil {
		return nil, err
	}
	pod := s.fleet.pod(a.m.key)
	if pod == nil {
		return nil, fmt.Errorf("dial %s: it has no pod", a.m.key)
	}
	return s.forwards.to(pod).RoundTrip(req)
}
