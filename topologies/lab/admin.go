// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// maxPage bounds what is read of one page.
const maxPage = 256 << 20

// portControl is where the control plane serves its pages; the other daemons have upstream's admin port.
const portControl = 15014

// AdminPort is the loopback port where a daemon serves its pages.
func AdminPort(daemon string) uint16 {
	if daemon == DaemonControl {
		return portControl
	}
	return mesh.PortAdmin
}

// MetricsPort is where a daemon serves its metrics.
func MetricsPort(daemon string) uint16 {
	if daemon == DaemonZtunnel {
		return mesh.PortMetrics
	}
	return portControl
}

// Page names a page of a daemon.
type Page struct {
	Node, Daemon string
	Method       string // "" is GET
	Port         uint16 // 0 is AdminPort
	Path         string // with its query
	Accept       string // a media type; "" says nothing
}

func (p Page) String() string {
	return daemonName(p.Node, p.Daemon) + p.Path
}

// OpenPage asks a daemon for a page. A status that is not 2xx is an error that holds what was answered. The caller closes it.
func (l *Lab) OpenPage(ctx context.Context, p Page) (*http.Response, error) {
	if p.Method == "" {
		p.Method = http.MethodGet
	}
	if p.Port == 0 {
		p.Port = AdminPort(p.Daemon)
	}
	req, err := http.NewRequestWithContext(ctx, p.Method, fmt.Sprintf("http://localhost:%d%s", p.Port, p.Path), nil)
	if err != nil {
		return nil, err
	}
	if p.Accept != "" {
		req.Header.Set("Accept", p.Accept)
	}
	res, err := (&http.Client{Transport: l.Driver.Daemon(p.Node, p.Daemon).Admin()}).Do(req)
	if err != nil {
		if cause := errors.Unwrap(err); cause != nil { // without the URL, which is the same for all of them
			err = cause
		}
		return nil, fmt.Errorf("get %s: %w", p, err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		return nil, fmt.Errorf("get %s: %s: %s", p, res.Status, strings.TrimSpace(string(said)))
	}
	return res, nil
}

// ReadPage reads a page of a daemon.
func (l *Lab) ReadPage(ctx context.Context, p Page) ([]byte, error) {
	res, err := l.OpenPage(ctx, p)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxPage))
	if err != nil {
		return data, fmt.Errorf("get %s: %w", p, err)
	}
	return data, nil
}

// ConfigDump is what a node's ztunnel says of its configuration and connections.
func (l *Lab) ConfigDump(ctx context.Context, node string) (admin.Dump, error) {
	var d admin.Dump
	data, err := l.ReadPage(ctx, Page{Node: node, Daemon: DaemonZtunnel, Path: "/config_dump"})
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return d, fmt.Errorf("config dump of %s: %w", node, err)
	}
	return d, nil
}

// Nodes are the names of the nodes.
func (l *Lab) Nodes() []string {
	var names []string
	for i := range l.Spec.Clusters {
		for _, n := range l.Spec.Clusters[i].Nodes {
			names = append(names, n.Name)
		}
	}
	return names
}
