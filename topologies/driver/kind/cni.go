// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/kindconfigs/shapes"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// CNI is what a cluster's pods have their network from. The zero value is what the node image brings.
type CNI struct {
	installed
	project  shapes.Project // what is known of it; the zero value is nothing
	manifest []byte
}

// installed is the CNI that a cluster was given in the place of what its node image brings; the zero value says that it was not.
// Clusters of which it differs are not alike.
type installed struct {
	Name          string `json:"name"`
	Manifest      string `json:"manifest"` // its SHA-256
	NetworkPolicy bool   `json:"networkPolicy,omitempty"`
}

// asked reports whether there is one.
func (i installed) asked() bool { return i != installed{} }

// ReadCNI reads the manifest that from names: a project of package shapes, a file, a URL, or PROJECT=FILE, a project by a manifest
// of one's own. "" and what node images bring are the zero CNI. networkPolicy says that a file or URL of no project enforces
// NetworkPolicy objects; of projects that is known.
func ReadCNI(ctx context.Context, from string, networkPolicy bool) (CNI, error) {
	switch {
	case from == "" && networkPolicy:
		return CNI{}, errors.New("a node image's CNI is known: name the manifest that enforces NetworkPolicy objects with --cni FILE")
	case from == "":
		return CNI{}, nil
	}
	c, where, err := choose(from, networkPolicy)
	if err == nil && where != "" {
		c.manifest, err = read(ctx, where)
	}
	if err == nil && where != "" {
		sum := sha256.Sum256(c.manifest)
		c.Manifest = hex.EncodeToString(sum[:])
		err = checkManifest(c.manifest)
	}
	if err != nil {
		return CNI{}, fmt.Errorf("CNI %s: %w", from, err)
	}
	return c, nil
}

// choose finds out which CNI from names and where its manifest is; "" if it needs none.
func choose(from string, networkPolicy bool) (c CNI, where string, err error) {
	projects, err := shapes.Projects()
	if err != nil {
		return CNI{}, "", err
	}
	name, own, _ := strings.Cut(from, "=")
	i := slices.IndexFunc(projects, func(p shapes.Project) bool { return p.Name == name })
	if i < 0 {
		where, _, _ := strings.Cut(from, "?") // of a URL
		return CNI{installed: installed{Name: path.Base(where), NetworkPolicy: networkPolicy}}, from, nil
	}
	p := projects[i]
	if own != "" {
		p.Manifest, p.IPv4Only, p.PodSubnet = own, false, netip.Prefix{} // they are the other manifest's
	}
	if err := choosable(p, own != "", networkPolicy); err != nil || p.NodeImage {
		return CNI{}, "", err
	}
	return CNI{installed: installed{Name: name, NetworkPolicy: p.NetworkPolicy}, project: p}, p.Manifest, nil
}

// choosable says all that is wrong with asking for a project.
func choosable(p shapes.Project, own, networkPolicy bool) error {
	var errs []error
	switch {
	case p.Unsupported != "":
		errs = append(errs, fmt.Errorf("%s: choose one of %s, or bring a manifest: --cni FILE", p.Unsupported, shapes.ProjectNames()))
	case p.NodeImage && own:
		errs = append(errs, errors.New("it is what node images bring, and takes no manifest: leave =FILE out, or the name"))
	case p.Manifest == "" && p.Render != "":
		errs = append(errs, fmt.Errorf("it has no manifest but a chart: make one with `%s > %s.yaml` and ask for --cni %[2]s=%[2]s.yaml", p.Render, p.Name))
	}
	if networkPolicy {
		errs = append(errs, fmt.Errorf("whether it enforces NetworkPolicy objects is known (%v): leave --cni-network-policy out", p.NetworkPolicy))
	}
	return errors.Join(errs...)
}

const (
	mostManifest = 16 << 20 // bytes
	readWithin   = time.Minute
)

// read reads a file, or what is at a URL.
func read(ctx context.Context, where string) ([]byte, error) {
	if !strings.Contains(where, "://") {
		text, err := os.ReadFile(where)
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("there is no file %s, and no project of that name: those are %s", where, shapes.ProjectNames())
		}
		return text, err
	}
	text, err := download(ctx, where)
	if err != nil {
		return nil, fmt.Errorf("%w: bring the manifest if this machine does not reach it: --cni FILE, or NAME=FILE of a project", err)
	}
	return text, nil
}

func download(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s", url, answer.Status)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, mostManifest+1))
	if err == nil && len(text) > mostManifest {
		err = fmt.Errorf("more than %d bytes", mostManifest)
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", url, err)
	}
	return text, nil
}

// kindTemplate is what kind fills in in the manifests of its node images, and nobody else does.
var kindTemplate = regexp.MustCompile(`\{\{[- ]*\.PodSubnet[- ]*\}\}`)

// checkManifest says all that keeps a text from being a manifest: before there is a cluster that waits for it.
func checkManifest(text []byte) error {
	var errs []error
	if found := kindTemplate.Find(text); found != nil {
		errs = append(errs, fmt.Errorf("it is a template of kind: write the cluster's pod subnets for %s", found))
	}
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	objects := 0
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		var object map[string]any
		if err == nil {
			err = sigsyaml.Unmarshal(document, &object)
		}
		switch {
		case err != nil:
			return errors.Join(append(errs, fmt.Errorf("document %d is no Kubernetes object: %w: is it a page about the manifest?", n, err))...)
		case object == nil: // comments
		case object["kind"] == nil || object["apiVersion"] == nil:
			errs = append(errs, fmt.Errorf("document %d has no kind or no apiVersion", n))
		default:
			objects++
		}
	}
	if objects == 0 {
		errs = append(errs, errors.New("it has no Kubernetes objects"))
	}
	return errors.Join(errs...)
}

// fits says what keeps the CNI from serving a cluster of a topology.
func (c *CNI) fits(cluster *topologies.Cluster) error {
	if err := c.project.Fits(cluster); err != nil {
		return fmt.Errorf("CNI %s: %w: %w", c.Name, lab.ErrUnsupported, err)
	}
	return nil
}

// plugins refuses a node image without the CNI plugins that a project counts on: nodes would be Ready, and pods never.
func (t tools) plugins(ctx context.Context, nodeImage string, c CNI) error {
	if len(c.project.Plugins) == 0 {
		return nil
	}
	there, err := t.run(ctx, nil, t.docker, "run", "--rm", "--entrypoint=ls", nodeImage, "/opt/cni/bin")
	if err != nil {
		return fmt.Errorf("CNI %s: %w", c.Name, err)
	}
	for _, p := range c.project.Plugins {
		if !slices.Contains(strings.Fields(there), p) {
			return fmt.Errorf("CNI %s: the node image %s has no CNI plugin %s: take one that has it in /opt/cni/bin, with --node-image; `make node-image NODE_IMAGE=--offline` makes one", c.Name, nodeImage, p)
		}
	}
	return nil
}
