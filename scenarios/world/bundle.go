// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// maxLogBytes bounds each log in a bundle; the end of a log is what matters.
const maxLogBytes = 4 << 20

// bundles are the directories that failed scenarios left, by their full text.
var bundles = map[string]string{}

// CollectIfFailed leaves a bundle of the suite's lab if the current scenario failed: call it after each.
func CollectIfFailed(ctx context.Context) {
	if shared.Lab != nil {
		collectIfFailed(ctx, &shared)
	}
}

func collectIfFailed(ctx context.Context, w *World) {
	spec := ginkgo.CurrentSpecReport()
	if !spec.Failed() {
		return
	}
	dir := filepath.Join(failures(), slug(spec.FullText()), w.Spec.Name)
	if err := w.Bundle(ctx, dir); err != nil {
		ginkgo.GinkgoWriter.Println("the bundle lacks something:", err)
	}
	bundles[spec.FullText()] = filepath.Dir(dir)
	fmt.Fprintf(os.Stderr, "\nevidence of the failure: %s\n", filepath.Dir(dir))
}

func slug(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() > 100 {
			break
		}
	}
	return strings.Trim(b.String(), "-")
}

// Bundle writes what is needed to understand a failure into dir: logs, and per namespace links, routes, rules and
// sockets, each ztunnel's config dump (certificates without keys) and metrics, the objects, the pods. What cannot be had
// is named in the error and does not keep the rest from being written.
func (w *World) Bundle(ctx context.Context, dir string) error {
	b := &bundle{dir: dir}
	pods, err := w.Pods(ctx)
	b.note(err)
	doc, err := json.MarshalIndent(pods, "", "  ")
	b.note(err)
	b.write("pods.json", doc)
	for _, p := range pods {
		b.inspect(ctx, w, "pods/"+p.Namespace+"."+p.Name, lab.Target{Pod: p.PodRef})
	}
	for _, node := range w.Nodes() {
		b.inspect(ctx, w, "nodes/"+node, lab.Target{Node: node})
		b.daemonLog(ctx, w, node, lab.DaemonCNIAgent)
		b.daemonLog(ctx, w, node, lab.DaemonZtunnel)
		z := w.Daemon(node, lab.DaemonZtunnel)
		b.get(ctx, z, mesh.PortAdmin, "/config_dump", "daemons/"+node+".config_dump.json")
		b.get(ctx, z, mesh.PortMetrics, "/metrics", "daemons/"+node+".metrics.txt")
	}
	b.daemonLog(ctx, w, "", lab.DaemonControl)
	if w.Dir != "" {
		b.copyTree(filepath.Join(w.Dir, "logs"), "logs") // every process's, the daemons' among them
		b.copyTree(filepath.Join(w.Dir, "objects"), "objects")
	}
	return errors.Join(b.errs...)
}

type bundle struct {
	dir  string
	errs []error
}

func (b *bundle) note(err error) {
	if err != nil {
		b.errs = append(b.errs, err)
	}
}

func (b *bundle) write(name string, content []byte) {
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.note(err)
		return
	}
	b.note(os.WriteFile(path, content, 0o644))
}

func (b *bundle) inspect(ctx context.Context, w *World, name string, t lab.Target) {
	i, err := w.Inspect(ctx, t)
	b.note(err)
	text := "# links\n" + i.Links + "\n# routes\n" + i.Routes + "\n# rules\n" + i.Rules + "\n# sockets\n" + i.Sockets
	b.write(name+".txt", []byte(text))
}

// daemonLog asks the driver for a log where there is no directory to copy it from.
func (b *bundle) daemonLog(ctx context.Context, w *World, node, name string) {
	if w.Dir != "" {
		return
	}
	r, err := w.Daemon(node, name).Logs(ctx, time.Time{})
	if err != nil {
		b.note(fmt.Errorf("log of %s on %q: %w", name, node, err))
		return
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	b.note(err)
	b.write("logs/"+strings.TrimPrefix(node+"."+name, ".")+".log", tail(text))
}

func (b *bundle) get(ctx context.Context, d lab.Daemon, port uint16, path, name string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://localhost:%d%s", port, path), nil)
	if err != nil {
		b.note(err)
		return
	}
	res, err := (&http.Client{Transport: d.Admin(), Timeout: Budget.Evidence}).Do(req)
	if err != nil {
		b.note(fmt.Errorf("%s: %w", name, err))
		return
	}
	defer res.Body.Close()
	var buf bytes.Buffer
	_, err = buf.ReadFrom(res.Body)
	b.note(err)
	b.write(name, buf.Bytes())
}

func (b *bundle) copyTree(from, to string) {
	b.note(filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		b.write(filepath.Join(to, rel), tail(text))
		return nil
	}))
}

func tail(b []byte) []byte {
	if len(b) > maxLogBytes {
		return b[len(b)-maxLogBytes:]
	}
	return b
}
