// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// apiServer is lab.DaemonAPIServer: a static pod of the one node with a control plane, as kubeadm makes it.
type apiServer struct{ d *Driver }

// controllers are what lives by the API server, by the names of their leases, and where they say on their node that they are well.
var controllers = map[string]string{
	"kube-controller-manager": "https://localhost:10257/healthz", "kube-scheduler": "https://localhost:10259/healthz",
}

// apiServerMissing says why an API server cannot be stopped, on a cluster of which the nodes are within reach.
func (s *stand) apiServerMissing() string {
	if len(s.controlPlane) == 1 {
		return ""
	}
	return fmt.Sprintf("%d nodes of the cluster have the label %s: it takes one, with kubeadm's static pods", len(s.controlPlane), labelControlPlane)
}

// The manifests of the control plane are put aside, and put back. Its controllers end by themselves when they lose the API
// server, and kubelet would let them rest longer after each start that fails. It may start what was killed once more before it
// sees that the manifest is gone.
const (
	manifestScript = `set -e
cd /etc/kubernetes
aside=ambientlab-aside
names="kube-apiserver kube-controller-manager kube-scheduler"
`
	putAside = manifestScript + `[ -e manifests/kube-apiserver.yaml ] || [ -e $aside/kube-apiserver.yaml ] || { echo "no static pod kube-apiserver in /etc/kubernetes/manifests" >&2; exit 1; }
mkdir -p $aside
for n in $names; do [ ! -e manifests/$n.yaml ] || mv manifests/$n.yaml $aside/; done
quiet=0
while [ $quiet -lt 10 ]; do
  quiet=$((quiet+1))
  ! pkill -KILL -x kube-apiserver || quiet=0
  sleep 0.2
done
`
	putBack = manifestScript + `for n in $names; do [ ! -e $aside/$n.yaml ] || mv $aside/$n.yaml manifests/; done
rm -rf $aside
`
)

func (a *apiServer) at() (*stand, error) {
	s, err := a.d.standing()
	if err == nil && s.host == nil {
		err = errNoHost
	}
	if err == nil && s.apiServerMissing() != "" {
		err = errors.New(s.apiServerMissing())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", lab.DaemonAPIServer, err)
	}
	return s, nil
}

// Signal implements lab.Daemon.
func (a *apiServer) Signal(ctx context.Context, sig os.Signal) error {
	s, err := a.at()
	if err != nil {
		return err
	}
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %s: %v is no signal of this system", lab.DaemonAPIServer, sig)
	}
	if _, err := s.run(ctx, s.controlPlane[0], fmt.Sprintf("pkill -%d -x kube-apiserver", int(n))); err != nil {
		return fmt.Errorf("signal %s: %w", lab.DaemonAPIServer, err)
	}
	return nil
}

// Stop implements lab.Daemon: the API server gets no time to end.
func (a *apiServer) Stop(ctx context.Context) error {
	s, err := a.at()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.away = true // before, so that what half succeeds is undone too
	s.mu.Unlock()
	if _, err := s.run(ctx, s.controlPlane[0], putAside); err != nil {
		return fmt.Errorf("stop %s: %w", lab.DaemonAPIServer, err)
	}
	return nil
}

// Start implements lab.Daemon.
func (a *apiServer) Start(ctx context.Context, env ...string) error {
	s, err := a.at()
	if err == nil && len(env) > 0 {
		err = fmt.Errorf("start %s: its environment is the cluster's", lab.DaemonAPIServer)
	}
	if err != nil {
		return err
	}
	return s.returnAPIServer(ctx)
}

// returnAPIServer undoes Stop.
func (s *stand) returnAPIServer(ctx context.Context) error {
	s.mu.Lock()
	away := s.away
	s.mu.Unlock()
	if !away {
		return nil
	}
	if _, err := s.run(ctx, s.controlPlane[0], putBack); err != nil {
		return fmt.Errorf("start %s: %w", lab.DaemonAPIServer, err)
	}
	if err := s.awaitAPIServer(ctx); err != nil {
		return fmt.Errorf("start %s: %w", lab.DaemonAPIServer, err)
	}
	s.mu.Lock()
	s.away = false
	s.mu.Unlock()
	return nil
}

// Restart implements lab.Daemon.
func (a *apiServer) Restart(ctx context.Context, env ...string) error {
	if err := a.Stop(ctx); err != nil {
		return err
	}
	return a.Start(ctx, env...)
}

// Ready implements lab.Daemon: it answers, and what lives by it works again.
func (a *apiServer) Ready(ctx context.Context) error {
	s, err := a.at()
	if err != nil {
		return err
	}
	asked := time.Now()
	err = s.awaitAPIServer(ctx)
	for name, at := range controllers {
		if err == nil {
			err = s.awaitController(ctx, name, at, asked)
		}
	}
	if err != nil {
		return fmt.Errorf("%s is not ready: %w", lab.DaemonAPIServer, err)
	}
	return nil
}

// awaitAPIServer waits until the API server says that it is ready.
func (s *stand) awaitAPIServer(ctx context.Context) error {
	return poll(ctx, func() (string, bool) {
		try, cancel := context.WithTimeout(ctx, requestWithin)
		defer cancel()
		said, err := s.api.core.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(try)
		if err != nil {
			return fmt.Sprintf("%v %s", err, said), false
		}
		return "", true
	})
}

// awaitController waits until a controller of Kubernetes' own holds its lease, and has renewed it since; one without a lease, since it does
// not elect, until it is well.
func (s *stand) awaitController(ctx context.Context, name, at string, since time.Time) error {
	return poll(ctx, func() (string, bool) {
		var l coordinationv1.Lease
		err := s.api.res.Get(ctx, name, "kube-system", &l)
		if apierrors.IsNotFound(err) {
			_, err = s.run(ctx, s.controlPlane[0], "curl --silent --show-error --fail --insecure --max-time 2 "+at)
			return fmt.Sprintf("%s is not well: %v", name, err), err == nil
		}
		late := fmt.Sprintf("%s has not renewed its lease: %v", name, err)
		return late, err == nil && l.Spec.RenewTime != nil && l.Spec.RenewTime.After(since)
	})
}

// Status implements lab.Daemon.
func (a *apiServer) Status(ctx context.Context) (lab.Status, error) {
	s, err := a.at()
	if err != nil {
		return lab.Status{}, err
	}
	out, err := s.run(ctx, s.controlPlane[0], "pgrep -x kube-apiserver || true")
	return lab.Status{Running: strings.TrimSpace(out) != ""}, err
}

// Replace implements lab.Daemon.
func (a *apiServer) Replace(context.Context, ...string) error {
	return errors.New("only ztunnel can be replaced")
}

// Logs implements lab.Daemon.
func (a *apiServer) Logs(context.Context, time.Time) (io.ReadCloser, error) {
	return nil, fmt.Errorf("the log of %s is the cluster's: kubectl logs --namespace=kube-system --selector=component=kube-apiserver", lab.DaemonAPIServer)
}

// LogsSoFar implements lab.Daemon.
func (a *apiServer) LogsSoFar(ctx context.Context, since time.Time) (io.ReadCloser, error) {
	return a.Logs(ctx, since)
}

// Admin implements lab.Daemon.
func (a *apiServer) Admin() http.RoundTripper { return noAdmin{} }

type noAdmin struct{}

func (noAdmin) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("%s has no ports that a lab reaches", lab.DaemonAPIServer)
}
