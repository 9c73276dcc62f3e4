// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

// Conditions are written at a pace at which nobody else feels it.
const (
	writePause = 20 * time.Millisecond // 50 a second
	conflicts  = 3                     // how often one write is begun anew before it rests
)

// Statuses writes conditions into the statuses of policies and services, where they differ. Its Write is a duty of the Writer.
type Statuses struct {
	client dynamic.Interface
	log    *slog.Logger
	wake   chan struct{}
	writes atomic.Int64
	errors atomic.Int64

	written map[source.Key]mark // owned by Write

	mu         sync.Mutex // guards what follows
	objects    *source.Objects
	conditions []control.Condition
}

// mark is a write of which the source has not told yet.
type mark struct {
	version string // of the object that was found to differ
	want    condition
}

var _ control.Statuses = (*Statuses)(nil)

// NewStatuses makes it; it does no I/O.
func NewStatuses(c *kube.Cluster, log *slog.Logger) (*Statuses, error) {
	client, err := dynamic.NewForConfig(c.Config())
	if err != nil {
		return nil, fmt.Errorf("write statuses: %w", err)
	}
	return &Statuses{client: client, log: log, wake: make(chan struct{}, 1)}, nil
}

// Writes counts statuses that were written, Errors those that could not be.
func (s *Statuses) Writes() int64 { return s.writes.Load() }

// Errors counts statuses that could not be written.
func (s *Statuses) Errors() int64 { return s.errors.Load() }

// Offer implements control.Statuses.
func (s *Statuses) Offer(o *source.Objects, conditions []control.Condition) {
	s.mu.Lock()
	s.objects, s.conditions = o, conditions
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Write makes statuses what was offered last, until ctx ends.
func (s *Statuses) Write(ctx context.Context) {
	s.written = map[source.Key]mark{}
	retry := time.NewTimer(0) // what was offered before this replica was elected
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-retry.C:
		}
		if !s.settle(ctx) {
			retry.Reset(failed)
		}
	}
}

// settle writes what differs, and reports whether nothing failed.
func (s *Statuses) settle(ctx context.Context) bool {
	s.mu.Lock()
	objects, conditions := s.objects, s.conditions
	s.mu.Unlock()
	if objects == nil {
		return true
	}
	good, logged := true, false
	for key, want := range wanted(objects, conditions) {
		have := objects.Get(key)
		version := ""
		if have != nil {
			version = have.GetResourceVersion()
			if now, ok := find(key.Kind, have); (ok && now.same(want)) || (!ok && want.gone()) {
				delete(s.written, key)
				continue
			}
		}
		if s.written[key] == (mark{version, want}) {
			continue
		}
		if ctx.Err() != nil {
			return true
		}
		if err := s.write(ctx, key, have, want); err != nil {
			good = false
			s.errors.Add(1)
			if !logged && ctx.Err() == nil {
				s.log.Warn("condition cannot be written, trying again", "object", key.String(), "err", err)
			}
			logged = true
			if Unreachable(err) {
				return false
			}
			continue
		}
		s.written[key] = mark{version, want}
		pause(ctx, writePause)
	}
	return good
}

// wanted is the condition that each object should have; gone for those that should have none, but have one.
func wanted(o *source.Objects, conditions []control.Condition) map[source.Key]condition {
	out := make(map[source.Key]condition, len(conditions))
	had := func(kind string, p source.Object) {
		if _, ok := find(kind, p); ok {
			out[source.Key{Kind: kind, Namespace: p.GetNamespace(), Name: p.GetName()}] = condition{}
		}
	}
	for _, p := range o.AuthorizationPolicies {
		had("AuthorizationPolicy", p)
	}
	for _, p := range o.PeerAuthentications {
		had("PeerAuthentication", p)
	}
	for _, p := range o.Services {
		had("Service", p)
	}
	for i := range conditions {
		c := &conditions[i]
		want := condition{kind: control.ConditionType(c.Object.Kind), status: "False", reason: c.Reason, message: c.Message, generation: c.Generation}
		if c.Accepted {
			want.status = "True"
		}
		out[c.Object] = want
	}
	return out
}

// write applies one condition. have may be out of date: a conflict says so, and then the server is asked.
func (s *Statuses) write(ctx context.Context, key source.Key, have source.Object, want condition) error {
	kind, ok := source.KindOf(key.Kind)
	if !ok {
		return fmt.Errorf("no kind %q", key.Kind)
	}
	gvr, ok := resourceOf(key.Kind)
	if !ok {
		return fmt.Errorf("a %s has no status of ours", key.Kind)
	}
	resource := s.client.Resource(gvr).Namespace(key.Namespace)
	var err error
	for range conflicts {
		if have == nil {
			if have, err = s.read(ctx, resource, kind, key); err != nil || have == nil {
				return err
			}
		}
		var patch []byte
		if patch, err = encode(gvr, key, have, want); err != nil {
			return err
		}
		force := true
		bounded, cancel := context.WithTimeout(ctx, requestTimeout)
		_, err = resource.Patch(bounded, key.Name, types.ApplyPatchType, patch, metav1.PatchOptions{FieldManager: Manager, Force: &force}, "status")
		cancel()
		switch {
		case err == nil:
			s.writes.Add(1)
			return nil
		case apierrors.IsNotFound(err): // the object went meanwhile
			return nil
		case !apierrors.IsConflict(err):
			return err
		}
		have = nil
	}
	return err
}

// read asks for an object's metadata and status; nil if it is not there.
func (s *Statuses) read(ctx context.Context, resource dynamic.ResourceInterface, kind source.Kind, key source.Key) (source.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	u, err := resource.Get(ctx, key.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"namespace": u.GetNamespace(), "name": u.GetName(), "resourceVersion": u.GetResourceVersion()},
		"status":   u.Object["status"],
	})
	if err != nil {
		return nil, err
	}
	o := kind.New()
	return o, json.Unmarshal(data, o)
}

// resourceOf is where objects of a kind are served.
func resourceOf(kind string) (schema.GroupVersionResource, bool) {
	switch kind {
	case "AuthorizationPolicy":
		return schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}, true
	case "PeerAuthentication":
		return schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}, true
	case "Service":
		return schema.GroupVersionResource{Version: "v1", Resource: "services"}, true
	default:
		return schema.GroupVersionResource{}, false
	}
}
