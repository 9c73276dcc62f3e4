// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

var _ lab.Evidence = (*Driver)(nil)

// Collect implements lab.Evidence: events, the lab's objects, the logs of its pods and, where nodes can be reached, those of
// kubelet and containerd.
func (d *Driver) Collect(ctx context.Context, add func(name, about string, content []byte)) error {
	s, err := d.standing()
	if err != nil {
		return err
	}
	errs := []error{s.collectEvents(ctx, add), s.collectObjects(ctx, add), d.collectLogs(ctx, add)}
	if s.host != nil {
		for _, node := range s.nodes.order {
			errs = append(errs, s.collectJournal(ctx, node, add))
		}
	}
	return errors.Join(errs...)
}

// collectEvents adds the cluster's events for people, the oldest first.
func (s *stand) collectEvents(ctx context.Context, add func(name, about string, content []byte)) error {
	list, err := s.api.core.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list events: %w", err)
	}
	slices.SortStableFunc(list.Items, func(a, b corev1.Event) int { return eventTime(&a).Compare(eventTime(&b)) })
	var b bytes.Buffer
	for i := range list.Items {
		e := &list.Items[i]
		fmt.Fprintf(&b, "%s %s %s %s/%s %s: %s", eventTime(e).UTC().Format(time.RFC3339), e.Type, e.InvolvedObject.Kind,
			e.InvolvedObject.Namespace, e.InvolvedObject.Name, e.Reason, strings.TrimSpace(e.Message))
		if e.Count > 1 {
			fmt.Fprintf(&b, " (%d times)", e.Count)
		}
		b.WriteByte('\n')
	}
	add("events.txt", "the cluster's events, the oldest first", b.Bytes())
	return nil
}

// eventTime is when an event was seen last: writers fill in different fields.
func eventTime(e *corev1.Event) time.Time {
	switch {
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

func (s *stand) collectObjects(ctx context.Context, add func(name, about string, content []byte)) error {
	kinds, err := s.api.kinds()
	if err != nil {
		return err
	}
	all, err := s.api.find(ctx, kinds, LabelLab+"="+s.name)
	errs := []error{err}
	for _, o := range all {
		if o.kind.Kind == "Secret" || o.kind.Group == kindCRD.Group {
			continue
		}
		o.object.SetManagedFields(nil)
		text, err := yaml.Marshal(o.object.Object)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", o.what, err))
			continue
		}
		name := strings.TrimPrefix(o.object.GetNamespace()+"."+o.name, ".")
		add("objects/"+cmp.Or(o.object.GetKind(), o.kind.Kind)+"/"+name+".yaml", "an object and its status", text)
	}
	return errors.Join(errs...)
}

// collectLogs adds the logs of pods; daemons' are had from every driver.
func (d *Driver) collectLogs(ctx context.Context, add func(name, about string, content []byte)) error {
	sources, err := d.LogSources(ctx)
	errs := []error{err}
	for _, l := range sources {
		if l.Name != l.Pod.String() {
			continue
		}
		var b bytes.Buffer
		errs = append(errs, d.CopyLog(ctx, l.Pod, lab.LogOptions{}, &b))
		add("logs/"+l.Pod.Namespace+"."+l.Pod.Name+".log", "a log", b.Bytes())
	}
	return errors.Join(errs...)
}

// journalLines is as much as is read of a service's journal.
const journalLines = 20_000

func (s *stand) collectJournal(ctx context.Context, node string, add func(name, about string, content []byte)) error {
	var errs []error
	for _, unit := range []string{"kubelet", "containerd"} {
		text, err := s.run(ctx, s.nodes.cluster(node), fmt.Sprintf("journalctl --unit=%s --no-pager --output=short-iso-precise --lines=%d", unit, journalLines))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s's journal: %w", unit, err))
			continue
		}
		add("nodes/"+node+"/"+unit+".log", unit+"'s journal on the node", []byte(text))
	}
	return errors.Join(errs...)
}
