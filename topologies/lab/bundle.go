// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/dataplane/admin"
)

// BundleOptions say how evidence is collected. The zero value is good.
type BundleOptions struct {
	Progress func(what string) // may be nil
	Facts    map[string]string // go into the index: a seed, a revision, the scenario
	Each     time.Duration     // bounds every single question to the lab; 0 means 5 s
	MaxFile  int               // bounds each file; 0 means 4 MiB. The end of a log is kept, the beginning of anything else
	MaxTotal int               // bounds them together; 0 means 128 MiB
}

// Sink takes a bundle's files.
type Sink interface {
	Put(name string, content []byte) error // name is relative, with slashes
}

// IndexName is the file of a bundle that says what is in it.
const IndexName = "index.json"

// BundleIndex says what is in a bundle, and what is not.
type BundleIndex struct {
	Lab      string            `json:"lab"` // the topology's name
	Taken    time.Time         `json:"taken"`
	Facts    map[string]string `json:"facts"` // kernel, toolchain, versions, and what the caller added
	Files    []BundleFile      `json:"files"`
	Problems []string          `json:"problems"` // what could not be had
}

// BundleFile is one file of a bundle.
type BundleFile struct {
	Name     string `json:"name"`
	About    string `json:"about"`
	Bytes    int    `json:"bytes"`
	Cut      int    `json:"cut,omitempty"`      // bytes that were left out
	Scrubbed bool   `json:"scrubbed,omitempty"` // keys or tokens were taken out
}

// Bundle puts what is needed to understand a lab into sink: logs; links, routes, rules and sockets of pods, nodes and
// external hosts; each daemon's configuration, metrics, certificates without keys and goroutines; the objects, the pods, the
// topology, versions; and what the driver has to add if it is an Evidence. Keys and tokens are taken out. What cannot be had is named in the error and in the index, and does
// not keep the rest from being there.
func (l *Lab) Bundle(ctx context.Context, sink Sink, o BundleOptions) (*BundleIndex, error) {
	o.Each, o.MaxFile, o.MaxTotal = cmp.Or(o.Each, 5*time.Second), cmp.Or(o.MaxFile, 4<<20), cmp.Or(o.MaxTotal, 128<<20)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	b := &bundle{lab: l, sink: sink, o: o, left: o.MaxTotal, index: &BundleIndex{
		Lab: l.Spec.Name, Taken: time.Now().UTC(), Facts: map[string]string{}, Files: []BundleFile{}, Problems: []string{},
	}}
	for k, v := range o.Facts {
		b.index.Facts[k] = v
	}
	b.facts()
	b.topology()
	o.Progress("daemons")
	b.daemons(ctx)
	b.namespaces(ctx)
	o.Progress("logs and objects")
	b.logs(ctx)
	b.evidence(ctx)
	if l.Dir != "" {
		b.tree(filepath.Join(l.Dir, "objects"), "objects", "an object and its status")
	}
	doc, err := json.MarshalIndent(b.index, "", "  ")
	if err == nil {
		err = sink.Put(IndexName, append(doc, '\n'))
	}
	if err != nil {
		b.errs = append(b.errs, err)
	}
	return b.index, errors.Join(append(b.errs, ctx.Err())...)
}

type bundle struct {
	lab   *Lab
	sink  Sink
	o     BundleOptions
	left  int
	index *BundleIndex
	errs  []error
}

func (b *bundle) problem(name string, err error) {
	if err != nil {
		b.errs = append(b.errs, fmt.Errorf("%s: %w", name, err))
		b.index.Problems = append(b.index.Problems, fmt.Sprintf("%s: %v", name, err))
	}
}

// put adds a file. Of what is too long the end is kept if it is a log, whose beginning matters least.
func (b *bundle) put(name, about string, content []byte) {
	f := BundleFile{Name: name, About: about}
	most := min(b.o.MaxFile, b.left)
	clean := admin.Scrub(content)
	f.Scrubbed = !bytes.Equal(clean, content)
	if f.Cut = max(0, len(clean)-most); f.Cut > 0 {
		if strings.HasSuffix(name, ".log") {
			clean = clean[f.Cut:]
		} else {
			clean = clean[:most]
		}
	}
	if most == 0 && len(content) > 0 {
		b.index.Problems = append(b.index.Problems, name+": left out, the bundle is full")
		return
	}
	f.Bytes = len(clean)
	b.left -= f.Bytes
	if err := b.sink.Put(name, clean); err != nil {
		b.problem(name, err)
		return
	}
	b.index.Files = append(b.index.Files, f)
}

func (b *bundle) putJSON(name, about string, v any) {
	doc, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		b.problem(name, err)
		return
	}
	b.put(name, about, append(doc, '\n'))
}

func (b *bundle) facts() {
	b.index.Facts["go"] = runtime.Version()
	b.index.Facts["os"] = runtime.GOOS + "/" + runtime.GOARCH
	if kernel, err := readFile("/proc/sys/kernel/osrelease"); err == nil {
		b.index.Facts["kernel"] = strings.TrimSpace(string(kernel))
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.index.Facts["collector"] = strings.TrimSpace(info.Main.Path + " " + info.Main.Version)
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" || s.Key == "vcs.modified" {
				b.index.Facts[s.Key] = s.Value
			}
		}
	}
}

func (b *bundle) topology() {
	doc, err := yaml.Marshal(b.lab.Spec)
	if err != nil {
		b.problem("topology.yaml", err)
		return
	}
	b.put("topology.yaml", "the topology, with its defaults", doc)
}

// daemonPages are what is asked of daemons besides their metrics.
var daemonPages = []struct{ daemon, path, file, about string }{
	{DaemonZtunnel, "/config_dump", "config_dump.json", "workloads, services, policies, certificates, pods and connections"},
	{DaemonZtunnel, "/debug/process?format=json", "process.json", "environment, memory"},
	{DaemonZtunnel, "/debug/build?format=json", "build.json", "version and modules"},
	{DaemonZtunnel, "/healthz/ready", "ready.txt", "readiness"},
	{DaemonZtunnel, "/debug/pprof/goroutine?debug=2", "goroutines.txt", "stacks of all goroutines"},
	{DaemonCNIAgent, "/config_dump", "config_dump.json", "pods that are redirected, problems"},
	{DaemonCNIAgent, "/debug/process?format=json", "process.json", "arguments, environment, memory"},
	{DaemonCNIAgent, "/debug/pprof/goroutine?debug=2", "goroutines.txt", "stacks of all goroutines"},
	{DaemonControl, "/debug/snapshot?format=json", "snapshot.json", "the mesh as it is served"},
	{DaemonControl, "/debug/proxies?format=json", "proxies.json", "who is connected and what each acknowledged"},
	{DaemonControl, "/debug/problems?format=json", "problems.json", "what is wrong with the objects"},
	{DaemonControl, "/debug/policies?format=json", "policies.json", "what became of each policy"},
	{DaemonControl, "/debug/process?format=json", "process.json", "arguments, environment, memory"},
	{DaemonControl, "/debug/pprof/goroutine?debug=2", "goroutines.txt", "stacks of all goroutines"},
}

func (b *bundle) daemons(ctx context.Context) {
	b.daemon(ctx, "", DaemonControl)
	for _, node := range b.lab.Nodes() {
		b.daemon(ctx, node, DaemonZtunnel)
		b.daemon(ctx, node, DaemonCNIAgent)
	}
}

func (b *bundle) daemon(ctx context.Context, node, name string) {
	dir := "daemons/" + daemonName(node, name) + "/"
	_ = b.ask(ctx, dir+"status.json", func(ctx context.Context) error {
		s, err := b.lab.Driver.Daemon(node, name).Status(ctx)
		if err == nil {
			b.putJSON(dir+"status.json", "the process", s)
		}
		return err
	})
	pages := []struct {
		Page
		file, about string
	}{{Page{Node: node, Daemon: name, Port: MetricsPort(name), Path: "/metrics"}, "metrics.txt", "metrics"}}
	for _, p := range daemonPages {
		if p.daemon == name {
			pages = append(pages, struct {
				Page
				file, about string
			}{Page{Node: node, Daemon: name, Path: p.path}, p.file, p.about})
		}
	}
	for _, p := range pages {
		err := b.ask(ctx, dir+p.file, func(ctx context.Context) error {
			text, err := b.lab.ReadPage(ctx, p.Page)
			if err == nil {
				b.put(dir+p.file, name+": "+p.about, text)
			}
			return err
		})
		if errors.Is(err, context.DeadlineExceeded) { // it hangs: nothing else of it is worth the wait
			b.index.Problems = append(b.index.Problems, daemonName(node, name)+" does not answer: it was not asked any further")
			return
		}
	}
}

// daemonName is as logs are called: "ztunnel.node1", "control".
func daemonName(node, name string) string {
	if node == "" {
		return name
	}
	return name + "." + node
}

// ask bounds one question, and notes what went wrong with it.
func (b *bundle) ask(ctx context.Context, name string, question func(context.Context) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, b.o.Each)
	defer cancel()
	err := question(ctx)
	b.problem(name, err)
	return err
}

func (b *bundle) namespaces(ctx context.Context) {
	var pods []PodInfo
	_ = b.ask(ctx, "pods.json", func(ctx context.Context) (err error) {
		pods, err = b.lab.Pods(ctx)
		return err
	})
	b.putJSON("pods.json", "the pods, as the driver sees them", pods)
	for _, p := range pods {
		if p.Namespace == "kube-system" { // most are in their node's namespace
			continue
		}
		b.inspect(ctx, "pods/"+p.Namespace+"."+p.Name, Target{Pod: p.PodRef})
	}
	for _, node := range b.lab.Nodes() {
		b.inspect(ctx, "nodes/"+node, Target{Node: node})
	}
	for _, e := range b.lab.Spec.External {
		b.inspect(ctx, "external/"+e.Name, Target{External: e.Name})
	}
}

func (b *bundle) inspect(ctx context.Context, name string, t Target) {
	if !b.lab.Capabilities().Has(CapInspect) {
		return
	}
	b.o.Progress(t.String())
	_ = b.ask(ctx, name+".txt", func(ctx context.Context) error {
		i, err := b.lab.Inspect(ctx, t)
		if err == nil {
			text := "# links\n" + i.Links + "\n# routes\n" + i.Routes + "\n# rules\n" + i.Rules + "\n# refused\n" + strings.Join(i.Refused, "\n") + "\n# sockets\n" + i.Sockets
			b.put(name+".txt", "links, routes, rules and sockets", []byte(text))
		}
		return err
	})
}

// logs are those of every process where the lab has a directory, else those that the driver hands out.
func (b *bundle) logs(ctx context.Context) {
	if b.lab.Dir != "" {
		b.tree(filepath.Join(b.lab.Dir, "logs"), "logs", "a log")
		return
	}
	daemons := [][2]string{{"", DaemonControl}}
	for _, node := range b.lab.Nodes() {
		daemons = append(daemons, [2]string{node, DaemonZtunnel}, [2]string{node, DaemonCNIAgent})
	}
	for _, d := range daemons {
		name := "logs/" + daemonName(d[0], d[1]) + ".log"
		_ = b.ask(ctx, name, func(ctx context.Context) error {
			r, err := b.lab.Driver.Daemon(d[0], d[1]).Logs(ctx, time.Time{})
			if err != nil {
				return err
			}
			defer r.Close()
			text, err := io.ReadAll(r)
			b.put(name, "a log", text)
			return err
		})
	}
}

// evidenceWithin bounds what the driver alone knows, which is many questions.
const evidenceWithin = time.Minute

func (b *bundle) evidence(ctx context.Context) {
	e, ok := b.lab.Driver.(Evidence)
	if !ok || ctx.Err() != nil {
		return
	}
	b.o.Progress("the cluster")
	ctx, cancel := context.WithTimeout(ctx, evidenceWithin)
	defer cancel()
	b.problem("the cluster", e.Collect(ctx, b.put))
}

func (b *bundle) tree(from, to, about string) {
	var names []string
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") {
			names = append(names, path)
		}
		return err
	})
	b.problem(to, err)
	slices.Sort(names)
	for _, path := range names {
		rel, err := filepath.Rel(from, path)
		if err != nil {
			b.problem(path, err)
			continue
		}
		name := filepath.ToSlash(filepath.Join(to, rel))
		text, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // an object that was deleted meanwhile
		}
		b.problem(name, err)
		if err == nil {
			b.put(name, about, text)
		}
	}
}
