// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// replace is a rolling update of one pod of a DaemonSet whose maxSurge is 1 and maxUnavailable 0: a second pod on the same
// node, with an address, a token and namespaces of its own, and once it is ready the end of the first. The second pod's name
// differs, as it does on Kubernetes; both log to the node's file.
func (s *site) replace(ctx context.Context, d *daemon, env []string) error {
	if d.pod == nil || d.pod.role != roleZtunnel {
		return fmt.Errorf("replace %s: only a ztunnel is made to run twice on a node", d.task.name)
	}
	if !d.pod.replacing.TryLock() {
		return fmt.Errorf("replace %s: it is being replaced already", d.task.name)
	}
	defer d.pod.replacing.Unlock()
	next, err := s.surge(ctx, d.pod, env)
	if err != nil {
		return fmt.Errorf("replace %s: %w", d.task.name, err)
	}
	d.pod.end() // from now on, the daemon is the next one
	next.standby.Store(false)
	if err := errors.Join(s.deletePod(ctx, d.pod.ref), s.forget(podKey(d.pod))); err != nil {
		return fmt.Errorf("replace %s by %s: %w", d.task.name, next.ref, err)
	}
	s.control.changed()
	return nil
}

// surge starts a pod like old beside it and waits until it is ready. On error nothing is left of it.
func (s *site) surge(ctx context.Context, old *pod, env []string) (*pod, error) {
	obj := old.object().DeepCopy()
	obj.Name, obj.Status = old.name()+"-"+strings.ToLower(rand.Text()[:5]), corev1.PodStatus{}
	next, err := s.newPod(obj)
	if err != nil {
		return nil, err
	}
	next.env, next.place = env, old.name()
	next.standby.Store(true)
	if err := s.store(obj); err != nil {
		s.dismiss([]*pod{next})
		return nil, err
	}
	s.control.changed()
	err = s.bringUp(ctx, next)
	next.starting.Done()
	if err != nil {
		return nil, errors.Join(err, s.deletePod(ctx, next.ref), s.forget(podKey(next)))
	}
	return next, nil
}

// name is what the pod is called whichever pod has its place.
func (p *pod) name() string {
	if p.place != "" {
		return p.place
	}
	return p.ref.Name
}

func podKey(p *pod) source.Key {
	return source.Key{Kind: "Pod", Namespace: p.ref.Namespace, Name: p.ref.Name}
}
