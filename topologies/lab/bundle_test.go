// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/topologies"
)

// memory is a Sink.
type memory map[string][]byte

func (m memory) Put(name string, content []byte) error {
	m[name] = content
	return nil
}

// pages answers like a daemon's ports, as far as it has pages.
type pages map[string]string

func (p pages) RoundTrip(r *http.Request) (*http.Response, error) {
	text, ok := p[r.URL.Path]
	if !ok {
		return nil, errFake
	}
	code := http.StatusOK
	if text == "" {
		code, text = http.StatusServiceUnavailable, "not today"
	}
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
}

const webToken = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl"

func bundleLab(t *testing.T) *Lab {
	t.Helper()
	l, f := newFake(t)
	f.admin = pages{
		"/metrics": "m 1\n", "/config_dump": `{"workloads":[],"version":{"version":"v1"}}`, "/debug/snapshot": "{}", "/debug/pprof/goroutine": "goroutine 1 [running]:\n",
		"/debug/process": `{"environment":{}}`, "/healthz/ready": "",
	}
	l.Dir = t.TempDir()
	spec, err := topologies.Open("three-nodes")
	if err != nil {
		t.Fatal(err)
	}
	l.Spec = spec
	for name, text := range map[string]string{
		"logs/control.log": "says " + webToken + "\n", "logs/long.log": strings.Repeat("old\n", 500) + "new\n",
		"objects/Pod/web.yaml": "kind: Pod\n", "ca/key.pem": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
	} {
		path := filepath.Join(l.Dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestBundle(t *testing.T) {
	l := bundleLab(t)
	m := memory{}
	var steps []string
	index, err := l.Bundle(t.Context(), m, BundleOptions{
		Progress: func(what string) { steps = append(steps, what) }, Facts: map[string]string{"seed": "7"}, MaxFile: 1000,
	})
	if !errors.Is(err, errFake) {
		t.Errorf("what could not be had is not in the error: %v", err)
	}
	for _, name := range []string{
		IndexName, "topology.yaml", "pods.json", "daemons/control/snapshot.json", "daemons/ztunnel.node2/config_dump.json", "daemons/ztunnel.node2/metrics.txt",
		"daemons/cni-agent.node3/goroutines.txt", "logs/control.log", "objects/Pod/web.yaml",
	} {
		if m[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	if got := string(m["logs/control.log"]); got != "says (hidden token)\n" {
		t.Errorf("a log with a token: %q", got)
	}
	if got := m["logs/long.log"]; len(got) != 1000 || !bytes.HasSuffix(got, []byte("new\n")) {
		t.Errorf("of a long log are left: %q", got)
	}
	for name, text := range m {
		if bytes.Contains(text, []byte("PRIVATE KEY")) || strings.HasPrefix(name, "ca/") {
			t.Errorf("%s holds a key", name)
		}
	}
	if index.Facts["seed"] != "7" || index.Facts["go"] == "" || len(steps) < 2 {
		t.Errorf("facts %v, steps %v", index.Facts, steps)
	}
	var written BundleIndex
	if err := json.Unmarshal(m[IndexName], &written); err != nil || len(written.Files) != len(m)-1 {
		t.Errorf("the index has %d files of %d, %v", len(written.Files), len(m)-1, err)
	}
	scrubbed := slices.IndexFunc(written.Files, func(f BundleFile) bool { return f.Name == "logs/control.log" && f.Scrubbed })
	cut := slices.IndexFunc(written.Files, func(f BundleFile) bool { return f.Name == "logs/long.log" && f.Cut == 1004 && f.Bytes == 1000 })
	if scrubbed < 0 || cut < 0 {
		t.Errorf("the index does not say what was changed: %+v", written.Files)
	}
	said := strings.Join(written.Problems, "\n")
	if !strings.Contains(said, "daemons/ztunnel.node1/ready.txt: get ztunnel.node1/healthz/ready: Service Unavailable: not today") || !strings.Contains(said, "status.json") {
		t.Errorf("problems:\n%s", said)
	}
}

// hanging is a daemon that is stopped.
type hanging struct{ asked *atomic.Int32 }

func (h hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	h.asked.Add(1)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// A daemon that hangs costs one wait.
func TestBundleOfHangingDaemons(t *testing.T) {
	l := bundleLab(t)
	asked := new(atomic.Int32)
	l.Driver.(*fakeDriver).admin = hanging{asked}
	index, err := l.Bundle(t.Context(), memory{}, BundleOptions{Each: time.Millisecond})
	if daemons := 1 + 2*len(l.Nodes()); int(asked.Load()) != daemons || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d daemons were asked %d times, %v", daemons, asked.Load(), err)
	}
	if said := strings.Join(index.Problems, "\n"); !strings.Contains(said, "ztunnel.node1 does not answer") {
		t.Errorf("problems:\n%s", said)
	}
}

// What does not fit is left out, and said.
func TestBundleIsBounded(t *testing.T) {
	m := memory{}
	index, _ := bundleLab(t).Bundle(t.Context(), m, BundleOptions{MaxTotal: 3000})
	total := 0
	for name, text := range m {
		if name != IndexName {
			total += len(text)
		}
	}
	if total > 3000 || !strings.Contains(strings.Join(index.Problems, "\n"), "logs/long.log: left out, the bundle is full") {
		t.Errorf("%d bytes, %v", total, index.Problems)
	}
}

func TestSinks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if err := DirSink(dir).Put("a/b.txt", []byte("text")); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "a", "b.txt")); err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
	var b bytes.Buffer
	sink := NewTarSink(&b, "top")
	if err := errors.Join(sink.Put("a/b.txt", []byte("text")), sink.Close()); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	h, err := tar.NewReader(zip).Next()
	if err != nil || h.Name != "top/a/b.txt" || h.Size != 4 {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestPages(t *testing.T) {
	l := bundleLab(t)
	d, err := l.ConfigDump(t.Context(), "node1")
	if err != nil || d.Version == nil {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := l.ReadPage(t.Context(), Page{Daemon: DaemonControl, Path: "/healthz/ready"}); err == nil || !strings.Contains(err.Error(), "get control/healthz/ready: Service Unavailable: not today") {
		t.Errorf("a page that is refused: %v", err)
	}
	if _, err := l.ReadPage(t.Context(), Page{Node: "node1", Daemon: DaemonZtunnel, Path: "/none"}); !errors.Is(err, errFake) {
		t.Errorf("a daemon that is gone: %v", err)
	}
	s, err := l.Scrape(t.Context(), "node1")
	if err != nil || len(s) != 1 || s[0].String() != "m{} 1" {
		t.Errorf("%v, %v", s, err)
	}
}

// witness is a driver that has more to say.
type witness struct{ *fakeDriver }

func (witness) Collect(_ context.Context, add func(name, about string, content []byte)) error {
	add("events.txt", "events", []byte("saw "+webToken+"\n"))
	return errors.New("no journal")
}

// What a driver adds is bounded and cleaned like the rest, and what it could not have is said.
func TestBundleTakesEvidence(t *testing.T) {
	l := bundleLab(t)
	l.Driver = witness{l.Driver.(*fakeDriver)}
	m := memory{}
	index, _ := l.Bundle(t.Context(), m, BundleOptions{})
	if got := string(m["events.txt"]); got != "saw (hidden token)\n" {
		t.Errorf("events: %q", got)
	}
	if said := strings.Join(index.Problems, "\n"); !strings.Contains(said, "no journal") {
		t.Errorf("problems:\n%s", said)
	}
}
