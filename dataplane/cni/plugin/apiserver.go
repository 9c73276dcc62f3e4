// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// kubeconfig is what the plugin understands of one: a server, whom to trust, and a token or a client certificate. Exec and
// auth-provider plug-ins are not: a CNI plugin's kubeconfig has a token.
type kubeconfig struct {
	CurrentContext string `json:"current-context"`
	Contexts       []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster string `json:"cluster"`
			User    string `json:"user"`
		} `json:"context"`
	} `json:"contexts"`
	Clusters []struct {
		Name    string  `json:"name"`
		Cluster cluster `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		Name string `json:"name"`
		User user   `json:"user"`
	} `json:"users"`
}

type cluster struct {
	Server   string `json:"server"`
	CAFile   string `json:"certificate-authority"`
	CA       []byte `json:"certificate-authority-data"`
	Insecure bool   `json:"insecure-skip-tls-verify"`
	Name     string `json:"tls-server-name"`
}

type user struct {
	Token     string `json:"token"`
	TokenFile string `json:"tokenFile"`
	CertFile  string `json:"client-certificate"`
	Cert      []byte `json:"client-certificate-data"`
	KeyFile   string `json:"client-key"`
	Key       []byte `json:"client-key-data"`
}

// apiServer reads objects from the API server.
type apiServer struct {
	base   *url.URL
	token  string
	client *http.Client
}

const (
	requestTimeout = 5 * time.Second
	maxObject      = 4 << 20
)

func newAPIServer(path string) (*apiServer, error) {
	cl, us, err := loadKubeconfig(path)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	base, err := url.Parse(cl.Server)
	if err == nil && (base.Scheme != "https" || base.Host == "") {
		err = fmt.Errorf("server %q is not an https URL", cl.Server)
	}
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	conf, err := tlsConfig(cl, us)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	s := &apiServer{base: base, token: us.Token}
	if s.token == "" && us.TokenFile != "" {
		b, err := os.ReadFile(us.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
		}
		s.token = strings.TrimSpace(string(b))
	}
	// No proxy from the environment: the runtime's is not meant for us.
	s.client = &http.Client{Timeout: requestTimeout, Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	return s, nil
}

// loadKubeconfig finds the current context's cluster and user, with their relative paths made absolute.
func loadKubeconfig(path string) (cl cluster, us user, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return cl, us, err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return cl, us, err
	}
	for _, c := range k.Contexts {
		if c.Name != k.CurrentContext {
			continue
		}
		for _, v := range k.Clusters {
			if v.Name == c.Context.Cluster {
				cl = v.Cluster
			}
		}
		for _, v := range k.Users {
			if v.Name == c.Context.User {
				us = v.User
			}
		}
	}
	if cl.Server == "" {
		return cl, us, fmt.Errorf("context %q names no cluster with a server", k.CurrentContext)
	}
	for _, p := range []*string{&cl.CAFile, &us.TokenFile, &us.CertFile, &us.KeyFile} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(path), *p)
		}
	}
	return cl, us, nil
}

func tlsConfig(cl cluster, us user) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cl.Name, InsecureSkipVerify: cl.Insecure}
	ca, err := dataOrFile(cl.CA, cl.CAFile)
	if err != nil {
		return nil, err
	}
	if ca != nil {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("certificate-authority holds no certificate")
		}
	}
	cert, err := dataOrFile(us.Cert, us.CertFile)
	if err != nil || cert == nil {
		return conf, err
	}
	key, err := dataOrFile(us.Key, us.KeyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	conf.Certificates = []tls.Certificate{pair}
	return conf, nil
}

func dataOrFile(data []byte, file string) ([]byte, error) {
	if len(data) > 0 || file == "" {
		return data, nil
	}
	return os.ReadFile(file)
}

func (s *apiServer) read(ctx context.Context, kind, namespace, name string) (*object, error) {
	path := []string{"api", "v1", "namespaces", name}
	if kind == "Pod" {
		path = []string{"api", "v1", "namespaces", namespace, "pods", name}
	}
	u := s.base.JoinPath(path...)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, fmt.Errorf("GET %s: %w", u, fs.ErrNotExist)
	case http.StatusUnauthorized:
		return nil, fmt.Errorf("GET %s: %s: %w", u, resp.Status, errStaleToken)
	default:
		return nil, fmt.Errorf("GET %s: %s", u, resp.Status)
	}
	var o object
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxObject)).Decode(&o); err != nil {
		return nil, fmt.Errorf("GET %s: %w", u, err)
	}
	return &o, nil
}
