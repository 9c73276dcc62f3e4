// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// errNoHost is what needs a Host without one.
var errNoHost = errors.New("commands cannot be run on the cluster's nodes: this driver was given no Host")

// run runs a script on a node, by the cluster's name, and returns what it printed.
func (s *stand) run(ctx context.Context, node, script string) (string, error) {
	if s.host == nil {
		return "", errNoHost
	}
	var out, errOut bytes.Buffer
	exit, err := s.hostExec(ctx, node, []string{"sh", "-c", script}, lab.Stdio{Out: &out, Err: &errOut})
	if err == nil && exit != 0 {
		err = fmt.Errorf("exit code %d: %s", exit, strings.TrimSpace(errOut.String()))
	}
	if err != nil {
		return out.String(), fmt.Errorf("run on node %s: %w", node, err)
	}
	return out.String(), nil
}

// hostExec is Host.Exec, after which nothing is written any more.
func (s *stand) hostExec(ctx context.Context, node string, argv []string, stdio lab.Stdio) (int, error) {
	stdio, end := gates(stdio)
	defer end()
	return s.host.Exec(ctx, node, argv, stdio)
}

// pid is the main process of a pod's first container, as its node knows it.
func (s *stand) pid(ctx context.Context, p *corev1.Pod) (int, error) {
	id, err := containerID(p)
	if err != nil {
		return 0, err
	}
	// The runtime knows; where its client is not on the node, the main process is the one that its control group lists first.
	out, err := s.run(ctx, p.Spec.NodeName, `ctr -n k8s.io task ls 2>/dev/null | while read id pid rest; do [ "$id" = `+id+` ] && echo $pid && exit; done
[ -n "$(command -v ctr)" ] || grep -l `+id+` /proc/[0-9]*/cgroup | cut -d/ -f3 | sort -n | head -n1`)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		return 0, fmt.Errorf("node %s knows no process of pod %s", p.Spec.NodeName, refOf(p))
	}
	return pid, nil
}

// containerID is the name that a node's runtime has for a pod's first container.
func containerID(p *corev1.Pod) (string, error) {
	c := mainStatus(p)
	if c == nil || c.State.Running == nil {
		return "", fmt.Errorf("pod %s does not run", refOf(p))
	}
	_, id, ok := strings.Cut(c.ContainerID, "://")
	if !ok {
		return "", fmt.Errorf("pod %s: container id %q is not as kubelet writes them", refOf(p), c.ContainerID)
	}
	return id, nil
}

// lethal are the signals that end a daemon, now or when it has finished.
var lethal = []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}

// signal sends a signal to a daemon's process.
func (s *stand) signal(ctx context.Context, k key, sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("%v is no signal of this system", sig)
	}
	p := s.fleet.pod(k)
	c := mainStatus(p)
	if c == nil || c.State.Running == nil || s.fleet.dead(k, c.ContainerID) {
		return errors.New("it does not run")
	}
	switch {
	case s.host == nil && n != syscall.SIGKILL:
		return errNoHost
	case s.host == nil:
		zero := int64(0)
		uid := metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &p.UID}}
		if err := s.api.core.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, uid); err != nil {
			return err
		}
	default:
		pid, err := s.pid(ctx, p)
		if err != nil {
			return err
		}
		if _, err := s.run(ctx, p.Spec.NodeName, fmt.Sprintf("kill -%d %d", int(n), pid)); err != nil {
			return err
		}
	}
	if slices.Contains(lethal, n) {
		s.fleet.end(k, ended{c.ContainerID, n == syscall.SIGKILL})
	}
	return nil
}

// place is where a target's network namespace is: a node, by the cluster's name, and what enters it there.
type place struct {
	node  string
	enter []string // before a command
}

// place finds a target.
func (s *stand) place(ctx context.Context, t lab.Target) (place, error) {
	set := 0
	for _, is := range []bool{!t.Pod.IsZero(), t.Node != "", t.External != ""} {
		if is {
			set++
		}
	}
	switch {
	case s.host == nil:
		return place{}, errNoHost
	case set != 1:
		return place{}, errors.New("a target is one pod, one node or one external host")
	case t.External != "" && s.outside != nil && slices.ContainsFunc(s.spec.External, func(e topologies.External) bool { return e.Name == t.External }):
		return place{node: s.outside(t.External)}, nil
	case t.External != "":
		return place{}, fmt.Errorf("there is no external host %q on a Kubernetes cluster", t.External)
	case t.Node != "":
		node, err := s.nodes.find(t.Node)
		return place{node: node}, err
	}
	p := s.pod(t.Pod)
	if p == nil {
		return place{}, fmt.Errorf("there is no pod %s", t.Pod)
	}
	pid, err := s.pid(ctx, p)
	if err != nil {
		return place{}, err
	}
	return place{p.Spec.NodeName, []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--"}}, nil
}
