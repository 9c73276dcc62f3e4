// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/e2e-framework/klient"
	"sigs.k8s.io/e2e-framework/klient/k8s/resources"
)

// What a lab, or those that share Connections, may ask of the API server: scenarios poll, and client-go's own 5 a second would decide how
// fast they are.
const (
	requestsPerSecond = 500
	requestBurst      = 1000
)

// LabelAllowed lets a lab be brought up on a cluster, with the value "true" on namespace kube-system.
const LabelAllowed = "ambientlab.dev/allowed"

// client is the way to one API server.
type client struct {
	config *rest.Config
	res    *resources.Resources // typed objects
	dyn    dynamic.Interface    // objects of any kind
	core   kubernetes.Interface // logs, watches
	disco  discovery.CachedDiscoveryInterface
	mapper meta.ResettableRESTMapper
}

// restConfig says where the cluster is; it sends nothing, but to find out whether Options.Direct is of use.
func (o Options) restConfig(ctx context.Context) (*rest.Config, error) {
	config := o.REST
	if config == nil {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = o.Kubeconfig
		var err error
		config, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.Context}).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig: %w", err)
		}
	}
	config = rest.CopyConfig(config)
	config.UserAgent, config.QPS, config.Burst = "ambientlab", requestsPerSecond, requestBurst
	config.WarningHandler = rest.NoWarnings{}
	return o.direct(ctx, config), nil
}

// directWithin bounds how long Options.Direct is tried.
const directWithin = 2 * time.Second

// direct is config with the address of Options.Direct, if the API server answers there.
func (o Options) direct(ctx context.Context, config *rest.Config) *rest.Config {
	if o.Direct == "" {
		return config
	}
	at, err := url.Parse(config.Host)
	if err != nil {
		return config
	}
	at.Host = o.Direct
	direct := rest.CopyConfig(config)
	direct.Host = at.String()
	try, err := discovery.NewDiscoveryClientForConfig(direct)
	if err != nil {
		return config
	}
	ctx, cancel := context.WithTimeout(ctx, directWithin)
	defer cancel()
	if try.RESTClient().Get().AbsPath("/version").Do(ctx).Error() != nil {
		return config
	}
	return direct
}

// Kubeconfig is the path of the file by which the driver finds its cluster.
func (d *Driver) Kubeconfig() string {
	return cmp.Or(d.o.Kubeconfig, clientcmd.NewDefaultClientConfigLoadingRules().GetDefaultFilename())
}

// connect makes the clients.
func connect(config *rest.Config) (*client, error) {
	c := &client{config: config}
	k, err := klient.New(config)
	if err != nil {
		return nil, err
	}
	c.res = k.Resources()
	if c.dyn, err = dynamic.NewForConfig(config); err != nil {
		return nil, err
	}
	builtin := rest.CopyConfig(config)
	builtin.AcceptContentTypes, builtin.ContentType = runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON, runtime.ContentTypeProtobuf
	set, err := kubernetes.NewForConfig(builtin)
	if err != nil {
		return nil, err
	}
	c.core, c.disco = set, memory.NewMemCacheClient(set.Discovery())
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(c.disco)
	return c, nil
}

// allowed refuses a cluster that nobody has given to labs.
func (c *client) allowed(ctx context.Context, force bool) error {
	var ns corev1.Namespace
	if err := c.res.Get(ctx, "kube-system", "", &ns); err != nil {
		return fmt.Errorf("ask the cluster at %s: %w", c.config.Host, err)
	}
	if force || ns.Labels[LabelAllowed] == "true" {
		return nil
	}
	return fmt.Errorf("the cluster at %s is not marked for labs, which change nodes and install a mesh: `kubectl label namespace kube-system %s=true` marks it", c.config.Host, LabelAllowed)
}

// resource finds how objects of a kind are addressed.
func (c *client) resource(kind schema.GroupVersionKind, namespace string) (dynamic.ResourceInterface, error) {
	k, err := c.serves(kind)
	if err != nil {
		return nil, err
	}
	if !k.namespaced {
		return c.dyn.Resource(k.resource), nil
	}
	if namespace == "" {
		return nil, errors.New("it has no namespace")
	}
	return c.dyn.Resource(k.resource).Namespace(namespace), nil
}

// serves finds what the API server has of a kind. One that was defined since the last look is found at the second.
func (c *client) serves(kind schema.GroupVersionKind) (served, error) {
	m, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset()
		m, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return served{}, err
	}
	return served{kind, m.Resource, m.Scope.Name() != meta.RESTScopeNameRoot}, nil
}

// unlessGone is err, but for one that says that there is nothing.
func unlessGone(err error) error {
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil
	}
	return err
}
