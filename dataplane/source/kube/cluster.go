// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// What one process may ask of the API server: client-go's own 5 a second would stretch a start with many namespaces.
const (
	requestsPerSecond = 50
	requestBurst      = 100
)

// Cluster says where an API server is and who speaks to it.
type Cluster struct{ config *rest.Config }

// Connect reads a kubeconfig and takes its current context; "" means the service account of the pod that this process runs
// in. agent is the name by which the server's logs know this program. It sends nothing yet.
func Connect(kubeconfig, agent string) (*Cluster, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	config.UserAgent, config.ContentType, config.WarningHandler = agent, runtime.ContentTypeJSON, rest.NoWarnings{}
	config.QPS, config.Burst = requestsPerSecond, requestBurst
	return &Cluster{config: config}, nil
}

// Config is what client-go's constructors take. The caller may change it.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Host is the server's address.
func (c *Cluster) Host() string { return c.config.Host }

// builtin reads the kinds that every API server has, in protobuf, by their group.
func (c *Cluster) builtin() (map[string]rest.Interface, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	config := c.Config()
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	out := map[string]rest.Interface{}
	for _, gv := range []schema.GroupVersion{corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion} {
		config.GroupVersion, config.APIPath = &gv, "/apis"
		if gv.Group == "" {
			config.APIPath = "/api"
		}
		client, err := rest.RESTClientFor(config)
		if err != nil {
			return nil, err
		}
		out[gv.Group] = client
	}
	return out, nil
}

// custom reads the kinds that somebody has to install.
func (c *Cluster) custom() (dynamic.Interface, error) { return dynamic.NewForConfig(c.Config()) }

// Access is what a program without client-go needs to speak to the server as we do.
type Access struct {
	Server string // an https URL
	CA     []byte // PEM; empty: the system's roots
	Token  string // may expire: read Access again when TokenFile has changed
	// TokenFile is where Token was read, and CAFile where CA was; "" if they were in the kubeconfig.
	TokenFile, CAFile string
	// Certificate and Key are a client's, PEM; empty if there is a token.
	Certificate, Key []byte
	Insecure         bool // the server is not verified
}

// Access reads it anew from its files each time.
func (c *Cluster) Access() (Access, error) {
	t := c.config.TLSClientConfig
	a := Access{
		Server: c.config.Host, CA: t.CAData, CAFile: t.CAFile, Token: c.config.BearerToken, TokenFile: c.config.BearerTokenFile,
		Certificate: t.CertData, Key: t.KeyData, Insecure: t.Insecure,
	}
	for _, f := range []struct {
		path string
		into *[]byte
	}{{t.CAFile, &a.CA}, {t.CertFile, &a.Certificate}, {t.KeyFile, &a.Key}} {
		if f.path == "" || len(*f.into) > 0 {
			continue
		}
		data, err := os.ReadFile(f.path)
		if err != nil {
			return a, fmt.Errorf("read access to the API server: %w", err)
		}
		*f.into = data
	}
	if a.TokenFile != "" {
		data, err := os.ReadFile(a.TokenFile)
		if err != nil {
			return a, fmt.Errorf("read access to the API server: %w", err)
		}
		a.Token = strings.TrimSpace(string(data))
	}
	return a, nil
}
