// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// confirmations are how often the server must say that a kind is not installed before objects that were read are taken
// for gone: losing a policy by one wrong answer would open what it closes.
const confirmations = 3

// retries are short: a proxy in need of a new pod's address waits for them.
func retries() *wait.Backoff {
	return &wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second}
}

// follow keeps one kind up to date until ctx ends.
func (s *Source) follow(ctx context.Context, kind source.Kind) {
	t := newTable(s, kind)
	for absent := 0; ctx.Err() == nil; pause(ctx, s.options.Retry) {
		resource, err := s.find(ctx, kind)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			s.health.down(kind.Name, err)
		case resource.Empty():
			s.health.up(kind.Name)
			if absent++; absent == 1 {
				s.log.Info("kind is not installed, waiting for it", "kind", kind.Name, "versions", kind.Versions)
			}
			if absent == 1 && t.len() == 0 || absent == confirmations {
				_ = t.replace(nil) // nothing that could not be read
			}
		default:
			absent = 0
			s.reflect(ctx, t, resource)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// find asks in which version and under which name the server has a kind; an empty answer means that it has not.
func (s *Source) find(ctx context.Context, kind source.Kind) (schema.GroupVersionResource, error) {
	for _, version := range kind.Versions {
		gv, err := schema.ParseGroupVersion(version)
		if err != nil {
			return schema.GroupVersionResource{}, err
		}
		path := "/apis/" + version
		if gv.Group == "" {
			path = "/api/" + version
		}
		data, err := s.builtin[""].Get().AbsPath(path).SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Raw()
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return schema.GroupVersionResource{}, err
		}
		var list metav1.APIResourceList
		if err := json.Unmarshal(data, &list); err != nil {
			return schema.GroupVersionResource{}, err
		}
		for _, r := range list.APIResources {
			if r.Kind == kind.Name && !strings.Contains(r.Name, "/") {
				return gv.WithResource(r.Name), nil
			}
		}
	}
	return schema.GroupVersionResource{}, nil
}

// reflect follows a resource until ctx ends or the server does not have it any more.
func (s *Source) reflect(ctx context.Context, t *table, resource schema.GroupVersionResource) {
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logr.Discard())) // health logs what matters
	defer cancel()
	l := &lister{kind: t.kind.Name, health: s.health, gone: cancel, raw: s.raw(resource, s.selector(t.kind.Name))}
	cache.NewReflectorWithOptions(l, nil, t, cache.ReflectorOptions{
		Name: t.kind.Name, TypeDescription: t.kind.Name, Backoff: retries(),
	}).RunWithContext(ctx)
}

func (s *Source) selector(kind string) string {
	switch {
	case s.options.Node == "":
		return ""
	case kind == "Pod":
		return "spec.nodeName=" + s.options.Node
	case kind == "Node":
		return "metadata.name=" + s.options.Node
	default:
		return ""
	}
}

// raw lists and watches a resource in the form that is cheapest to read.
func (s *Source) raw(resource schema.GroupVersionResource, selector string) cache.ListWatch {
	client, ok := s.builtin[resource.Group]
	if !ok {
		custom := s.custom.Resource(resource)
		return cache.ListWatch{
			ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return custom.List(ctx, o) },
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return custom.Watch(ctx, o) },
		}
	}
	return cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return client.Get().Resource(resource.Resource).SpecificallyVersionedParams(&o, metav1.ParameterCodec, metav1.Unversioned).Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector, o.Watch = selector, true
			return client.Get().Resource(resource.Resource).SpecificallyVersionedParams(&o, metav1.ParameterCodec, metav1.Unversioned).Watch(ctx)
		},
	}
}

// lister passes a reflector's requests on and tells health how they ended.
type lister struct {
	kind   string
	health *health
	gone   func() // the server does not have the resource
	raw    cache.ListWatch
}

// errNoContext is the answer to a reflector of before those that pass a context.
var errNoContext = errors.New("a request without a context")

func (l *lister) List(metav1.ListOptions) (runtime.Object, error) { return nil, errNoContext }

func (l *lister) Watch(metav1.ListOptions) (watch.Interface, error) { return nil, errNoContext }

// ListWithContext implements cache.ListerWithContext.
func (l *lister) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	list, err := l.raw.ListWithContext(ctx, o)
	l.judge(ctx, err)
	return list, err
}

// WatchWithContext implements cache.WatcherWithContext.
func (l *lister) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := l.raw.WatchWithContext(ctx, o)
	l.judge(ctx, err)
	if err != nil && o.SendInitialEvents != nil {
		// The reflector waits for a server that refuses connections without heeding ctx here; an error that it does not know
		// makes it list instead, and then wait properly.
		err = errors.New(err.Error())
	}
	return w, err
}

func (l *lister) judge(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		l.health.up(l.kind)
	case apierrors.IsNotFound(err):
		l.gone()
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err), apierrors.IsInvalid(err):
		// The reflector lists anew, or asks in an older way; if that fails, too, it is heard then.
	default:
		l.health.down(l.kind, err)
	}
}
