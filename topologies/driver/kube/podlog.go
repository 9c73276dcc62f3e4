// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

var _ lab.LogCopier = (*Driver)(nil)

// LogSources implements lab.LogCopier. Of two pods of one daemon, which a rolling update has for a while, the one that counts
// has the daemon's name.
func (d *Driver) LogSources(context.Context) ([]lab.LogSource, error) {
	s, err := d.standing()
	if err != nil {
		return nil, err
	}
	var out []lab.LogSource
	for _, p := range s.pods.list(func(p *corev1.Pod) bool { _, daemon := s.fleet.keyOf(p); return daemon || s.ours(p) }) {
		name := refOf(p).String()
		k, ok := s.fleet.keyOf(p)
		if first := s.fleet.pod(k); ok && first != nil && first.UID == p.UID {
			name = strings.ReplaceAll(strings.TrimSpace(k.daemon+" "+k.node), " ", ".")
		}
		out = append(out, lab.LogSource{Name: name, Pod: refOf(p)})
	}
	slices.SortFunc(out, func(a, b lab.LogSource) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// CopyLog implements lab.LogCopier. It begins with the run of the container before this one, of which kubelet keeps the log.
func (d *Driver) CopyLog(ctx context.Context, ref lab.PodRef, o lab.LogOptions, w io.Writer) error {
	s, err := d.standing()
	if err != nil {
		return err
	}
	pod := s.pods.get(ref)
	if pod == nil {
		return fmt.Errorf("copy the log of %s: there is no such pod", ref)
	}
	c := &logCopy{s: s, pod: pod, to: w, since: o.Since}
	if err := c.run(ctx, o.Follow); err != nil && (!o.Follow || ctx.Err() == nil) {
		return fmt.Errorf("copy the log of %s: %w", ref, err)
	}
	return nil
}

// logCopy is one log on its way to somebody.
type logCopy struct {
	s     *stand
	pod   *corev1.Pod // as it was seen last
	to    io.Writer
	since time.Time
}

// writeError is that of whoever takes the lines.
type writeError struct{ error }

func (c *logCopy) run(ctx context.Context, follow bool) error {
	main := mainStatus(c.pod)
	if main != nil && main.RestartCount > 0 {
		if err := c.copy(ctx, &corev1.PodLogOptions{Previous: true}); errors.As(err, &writeError{}) {
			return err // else kubelet has forgotten it
		}
	}
	for {
		err := c.copy(ctx, &corev1.PodLogOptions{Follow: follow})
		switch {
		case !follow && apierrors.IsBadRequest(err) && (main == nil || main.ContainerID == ""):
			return nil // it has not begun
		case !follow || errors.As(err, &writeError{}):
			return err
		}
		select { // the container ended, or has not begun, or the connection ended
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
		now := c.s.pods.get(refOf(c.pod))
		if now == nil || now.UID != c.pod.UID {
			return nil
		}
		c.pod = now
	}
}

// copy hands on the lines of one container that were not handed on yet.
func (c *logCopy) copy(ctx context.Context, o *corev1.PodLogOptions) error {
	o.Container, o.Timestamps = c.pod.Spec.Containers[0].Name, true
	if !c.since.IsZero() {
		o.SinceTime = &metav1.Time{Time: c.since} // to the second
	}
	from := c.since
	r, err := c.s.api.core.CoreV1().Pods(c.pod.Namespace).GetLogs(c.pod.Name, o).Stream(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	for in := bufio.NewReaderSize(r, 64<<10); ; {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		stamp, _, _ := bytes.Cut(line, []byte(" "))
		at, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err != nil || at.Before(from) {
			continue
		}
		if _, err := c.to.Write(line); err != nil {
			return writeError{err}
		}
		c.since = at.Add(1) // what comes next is newer
	}
}
