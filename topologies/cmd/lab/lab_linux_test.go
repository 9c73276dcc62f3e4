// SPDX-License-Identifier: Apache-2.0

package main

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
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/reports/schema"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// One lab serves every test of the command that needs one.
func TestOnALab(t *testing.T) {
	if os.Getenv("AMBIENTLAB_BIN") == "" {
		t.Skip("no lab was started: run `make build` and set AMBIENTLAB_BIN")
	}
	root, err := os.MkdirTemp("", "lab") // short enough for its socket
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("AMBIENTLAB_DIR", root)
	t.Cleanup(func() { os.RemoveAll(root) })
	if code, out, errOut := runLab(t, "up", "two-pods", "--detach"); code != 0 {
		t.Fatalf("exit %d: %s%s", code, out, errOut)
	}
	t.Cleanup(func() {
		var errOut bytes.Buffer // the test's own context has ended
		if err := run(context.Background(), []string{"down"}, strings.NewReader(""), &errOut, &errOut); err != nil {
			t.Errorf("down: %v: %s", err, errOut.String())
		}
	})
	t.Run("terminal", testExecTerminal)
	t.Run("pages", testDebugListen)
	t.Run("one page", testDebugPage)
	t.Run("dump", testDumpArchive)
	t.Run("graph", testGraphFile)
	t.Run("zc", testZCTargets)
	t.Run("completion", testCompletion)
}

func success(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errOut := runLab(t, args...)
	if code != 0 {
		t.Fatalf("lab %v: exit %d: %s", args, code, errOut)
	}
	return out
}

// A browser reaches every daemon's pages, and ends with the command; other names of this host do not lead there.
func testDebugListen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errOut buffer
	ended := make(chan int, 1)
	go func() {
		ended <- report(&errOut, run(ctx, []string{"debug", "--listen", "127.0.0.1:0"}, strings.NewReader(""), &out, &errOut))
	}()
	errOut.await(t, "until Ctrl-C")
	get := func(url, host string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		r.Header.Set("Accept", "text/html")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	index := strings.TrimSpace(out.String())
	_, page := get(index, "")
	links := regexp.MustCompile(`href="([^"]+)"`).FindAllStringSubmatch(page, -1)
	if len(links) != 3 {
		t.Fatalf("%d daemons in\n%s", len(links), page)
	}
	for _, l := range links {
		if code, text := get(l[1], ""); code != http.StatusOK || !strings.Contains(text, "/debug/process") {
			t.Errorf("%s: %d\n%s", l[1], code, text)
		}
		if code, _ := get(l[1], "lab.example"); code != http.StatusForbidden {
			t.Errorf("%s, called by another name: %d", l[1], code)
		}
	}
	cancel()
	http.DefaultClient.CloseIdleConnections()
	if code := <-ended; code != 0 {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
	if r, err := http.Get(index); err == nil { //nolint:noctx // it must fail
		r.Body.Close()
		t.Error("the pages are still served")
	}
}

func testDebugPage(t *testing.T) {
	for args, want := range map[string]string{
		"debug ztunnel.node1 pods": `"name": "web"`, "debug node1/ztunnel /debug/pods --format html": "<td>web</td>",
		"debug control": `"path": "/debug/snapshot"`, "debug cni-agent.node1 config": `"node": "node1"`,
		"debug control /metrics": "pilot_xds",
	} {
		if out := success(t, strings.Fields(args)...); !strings.Contains(out, want) {
			t.Errorf("lab %s: no %s in\n%s", args, want, out)
		}
	}
	for args, want := range map[string]string{"debug ztunnel.node9": "there are: control, ztunnel.node1", "debug control none": "404"} {
		if code, _, errOut := runLab(t, strings.Fields(args)...); code == 0 || !strings.Contains(errOut, want) {
			t.Errorf("lab %s: exit %d, %s", args, code, errOut)
		}
	}
}

func testDumpArchive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "one.tar.gz")
	if out := success(t, "dump", "-o", path); !strings.HasPrefix(out, path+": ") {
		t.Errorf("it says %s", out)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]bool{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = true
	}
	for _, name := range []string{"one/index.json", "one/pods/shop.web.txt", "one/daemons/ztunnel.node1/config_dump.json", "one/logs/control.log"} {
		if !files[name] {
			t.Errorf("no %s among %d files", name, len(files))
		}
	}
	if code, _, errOut := runLab(t, "dump", path); code != 2 || !strings.Contains(errOut, "there already") {
		t.Errorf("over what is there: exit %d, %s", code, errOut)
	}
	var index lab.BundleIndex
	if err := json.Unmarshal([]byte(success(t, "dump", filepath.Join(t.TempDir(), "dir"), "-o", "json")), &index); err != nil || len(index.Files) == 0 || len(index.Problems) > 0 {
		t.Errorf("%d files, problems %v, %v", len(index.Files), index.Problems, err)
	}
}

func testGraphFile(t *testing.T) {
	success(t, "call", "web", "http://cart")
	path := filepath.Join(t.TempDir(), "mesh.json")
	read := func() schema.Graph {
		success(t, "graph", "-o", path)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		g, err := schema.DecodeGraph(f)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	g := read()
	for end := time.Now().Add(10 * time.Second); len(g.Edges) == 0 && time.Now().Before(end); { // a record comes after its call
		g = read()
	}
	if len(g.Edges) != 1 || g.Lab != "two-pods" {
		t.Errorf("%+v", g)
	}
	for args, want := range map[string]string{
		"graph": "shop/web  shop/cart  shop/cart", "graph --svg": "<svg", "graph --dot": "digraph", "graph --json": `"MeshGraph"`, "graph --since 0s": "FROM",
	} {
		if out := success(t, strings.Fields(args)...); !strings.Contains(out, want) {
			t.Errorf("lab %s: no %s in\n%s", args, want, out)
		}
	}
}

func testZCTargets(t *testing.T) {
	for args, want := range map[string]string{
		"zc workloads node1": "web", "zc workloads web --node node1": "web", "zc all -o yaml": "node1:", "zc connections -o json": `"state": "Up"`,
		"zc log --level debug": "current log level is debug", "zc log node1 --level info -o json": `"says": "current log level is info"`,
	} {
		if out := success(t, strings.Fields(args)...); !strings.Contains(out, want) {
			t.Errorf("lab %s: no %s in\n%s", args, want, out)
		}
	}
	for args, want := range map[string]string{
		"zc workloads nobody": `"nobody" is neither a node`, "zc workloads --node node9": `no node "node9"`, "zc log --level loud": "Invalid level",
	} {
		if code, _, errOut := runLab(t, strings.Fields(args)...); code == 0 || !strings.Contains(errOut, want) {
			t.Errorf("lab %s: exit %d, %s", args, code, errOut)
		}
	}
}

func testCompletion(t *testing.T) {
	for _, c := range []struct{ after, want string }{
		{"exec", "shop/web"}, {"zc workloads", "node1"}, {"logs", "ztunnel.node1"}, {"debug", "cni-agent.node1"}, {"down", "two-pods"}, {"zc workloads --node", "node1"},
	} {
		args := append([]string{"__complete"}, append(strings.Fields(c.after), "")...)
		if out := success(t, args...); !strings.Contains(out, c.want+"\n") {
			t.Errorf("after %q: no %s in\n%s", c.after, c.want, out)
		}
	}
}
