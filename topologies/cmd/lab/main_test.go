// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// runLab runs the program on a directory of labs of its own.
func runLab(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = report(&errOut, run(t.Context(), args, strings.NewReader(""), &out, &errOut))
	return code, out.String(), errOut.String()
}

func emptyRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	t.Setenv("AMBIENTLAB_DIR", root)
	return root
}

// exits are what the program makes of command lines where no lab stands.
var exits = []struct {
	args string
	code int
	want []string // on either stream
}{
	{"", 2, []string{"no command"}},
	{"frob", 2, []string{`"frob"`}},
	{"up --frob", 2, []string{"--frob"}},
	{"-o xml ps", 2, []string{"text or json"}},
	{"exec web", 2, []string{"exec"}},
	{"exec web --", 2, []string{"no command"}},
	{"up a b", 2, []string{"up"}},
	{"up two-pods --name a/b", 2, []string{"plain name"}},
	{"up --driver podman", 2, []string{"netns, kind, kube"}},
	{"up --node-image x", 2, []string{"--node-image", "to kind"}},
	{"up --driver kind --image x --force", 2, []string{"--image", "--force", "to kube"}},
	{"up --kubeconfig x", 2, []string{"--kubeconfig", "to kube"}},
	{"up --driver kube --name x", 2, []string{"no other name"}},
	{"up --driver kind --tls-keys", 2, []string{"--tls-keys", "to netns"}},
	{"up --cni flannel --cni-network-policy", 2, []string{"--cni means nothing", "--cni-network-policy means nothing", "to kind"}},
	{"up --driver kind --cni cilium", 1, []string{"CNI cilium", "helm template"}},
	{"up --driver kind --cni no-such-cni", 1, []string{"no-such-cni", "flannel, calico"}},
	{"up --driver kind --cni-network-policy", 1, []string{"--cni FILE"}},
	{"up --help", 0, []string{"--cni", "kindnet, flannel, calico, cilium", "NAME=FILE"}},
	{"up --driver kube --kubeconfig no-such-file", 1, []string{"no-such-file"}},
	{"ps --kubeconfig no-such-file", 1, []string{"no-such-file"}},
	{"down --kubeconfig no-such-file", 1, []string{"no-such-file"}},
	{"gc --all -o json", 0, []string{"[]"}},
	{"up no-such-topology", 1, []string{"no-such-topology", "three-nodes"}},
	{"check two-pods", 0, []string{"two-pods is good"}},
	{"topologies", 0, []string{"three-nodes", "two-pods"}},
	{"check two-pods -o json", 0, []string{`"name": "two-pods"`, `"podSubnets"`, `"8080"`}},
	{"topologies -o json", 0, []string{`"name": "two-pods"`}},
	{"ps", 0, []string{"no lab stands", "lab up"}},
	{"ps -o json", 0, []string{"[]"}},
	{"--lab x ps -o json", 1, []string{`"x"`}},
	{"list", 0, []string{"no lab stands"}},
	{"list -o json", 0, []string{"[]"}},
	{"gc", 0, nil},
	{"gc -o json", 0, []string{"[]"}},
	{"inspect web", 1, []string{"no lab stands"}},
	{"exec -o json web -- true", 2, []string{"means nothing", "lab exec --help"}},
	{"logs", 2, []string{"--all"}},
	{"logs web --all", 2, []string{"--all"}},
	{"logs web --since yesterday", 2, []string{"--since yesterday"}},
	{"up -o json", 2, []string{"means nothing"}},
	{"exec -t web -- sh", 2, []string{"is no terminal: run without -t"}},
	{"exec web -it -- sh", 2, []string{"is no terminal: run without -t"}},
	{"exec web --frob -- sh", 2, []string{"--frob"}},
	{"exec -i web -- cat", 1, []string{"no lab stands"}},
	{"call web http://cart --count 3", 2, []string{"--count", "after --", "lab call --help"}},
	{"call web http://cart -- --bogus", 2, []string{"-bogus", "lab call --help"}},
	{"call web cart", 2, []string{`call: parse URL "cart"`}},
	{"call web http://cart -- --help", 0, []string{"-ping-pong"}},
	{"call --help", 0, []string{"-ping-pong", "udp"}},
	{"trace web ftp://cart", 2, []string{`trace: parse URL "ftp://cart"`}},
	{"trace web http://cart -- --family 5", 2, []string{"want 4 or 6"}},
	{"trace web http://cart -- --count 3", 2, []string{"one call"}},
	{"trace web http://cart -- --family 6", 1, []string{"no lab stands"}},
	{"zc", 2, []string{"what to show is missing", "connections"}},
	{"zc --help", 0, []string{"workloads", "certificates", "--node", "Examples"}},
	{"zc frob", 2, []string{"frob"}},
	{"zc workloads", 1, []string{"no lab stands"}},
	{"zc workloads a b", 2, []string{"zc workloads: ", "lab zc workloads --help"}},
	{"zc workloads -o frob", 2, []string{"text, json, table, short, wide or yaml"}},
	{"zc connections --direction up", 2, []string{"inbound or outbound"}},
	{"zc workloads -f zc/testdata/upstream.json", 0, []string{"NAMESPACE  POD NAME  ADDRESS", "shop       web"}},
	{"zc workloads web -f zc/testdata/upstream.json -o json", 0, []string{`"name": "web"`}},
	{"zc policies -f zc/testdata/upstream.json -o yaml", 0, []string{"name: named"}},
	{"zc all -f zc/testdata/upstream.json", 0, []string{"# workloads", "# certificates", "WORKLOAD"}},
	{"zc all -f zc/testdata/upstream.json -o json", 0, []string{`"zc/testdata/upstream.json": {`}},
	{"zc services -f none.json", 1, []string{"read config dump"}},
	{"zc log --level loud", 1, []string{"no lab stands"}},
	{"dump", 1, []string{"no lab stands"}},
	{"dump a -o b.tar.gz", 2, []string{"both"}},
	{"dump -o b.zip", 2, []string{"*.tar.gz"}},
	{"debug", 2, []string{"want a daemon"}},
	{"debug control --listen 127.0.0.1:0", 2, []string{"name none"}},
	{"debug --listen 0.0.0.0:80", 2, []string{"loopback"}},
	{"debug control --format xml", 2, []string{"json or html"}},
	{"debug control", 1, []string{"no lab stands"}},
	{"graph", 1, []string{"no lab stands"}},
	{"graph --svg --dot", 2, []string{"one form"}},
	{"graph --svg -o x.dot", 2, []string{"one form"}},
	{"graph -o x.png", 2, []string{"*.svg"}},
	{"graph --by colour", 2, []string{"namespace or node"}},
	{"graph --theme pink", 2, []string{"light or dark"}},
	{"graph --since yesterday", 2, []string{"--since"}},
	{"completion bash", 0, []string{"__start_lab"}},
	{"__complete zc ", 0, []string{"connections", "workloads"}},
	{"down", 1, []string{"no lab stands"}},
	{"--lab x call web http://cart", 1, []string{`"x"`}},
	{"logs web", 1, []string{"no lab stands"}},
	{"manifests --cluster east", 2, []string{"--cluster east", "in which topology"}},
	{"manifests --image x no-such-topology", 1, []string{"no-such-topology"}},
	{"manifests -o text --image x", 0, []string{"kind: DaemonSet"}},
	{"manifests -o table", 2, []string{"text, json or yaml"}},
	{"image -o mesh.zip", 2, []string{"*.tar"}},
	{"hold", 1, []string{"lab up"}},
	{"--help", 0, []string{"up", "down", "trace"}},
}

func TestExitCodes(t *testing.T) {
	emptyRoot(t)
	for _, c := range exits {
		expectExit(t, c.args, c.code, c.want...)
	}
}

func expectExit(t *testing.T, args string, wantCode int, wants ...string) {
	t.Helper()
	code, out, errOut := runLab(t, strings.Fields(args)...)
	if code != wantCode {
		t.Errorf("lab %s: exit %d, want %d\n%s%s", args, code, wantCode, out, errOut)
	}
	for _, want := range wants {
		if !strings.Contains(out+errOut, want) {
			t.Errorf("lab %s: no %q in\n%s%s", args, want, out, errOut)
		}
	}
}

// All that is wrong with a topology is said at once.
func TestCheckOfABadTopology(t *testing.T) {
	emptyRoot(t)
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	err := os.WriteFile(bad, []byte(`apiVersion: ambientlab.dev/v1alpha1
kind: Topology
name: Bad_Name
clusters:
- nodes: [{name: n1}]
  ipFamily: v4
  workloads:
  - {name: a, namespace: nope, node: n9, colour: red}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	expectExit(t, "check "+bad, 1,
		"name:", "clusters[0].ipFamily:", "clusters[0].workloads[0].namespace:", "clusters[0].workloads[0].node:", "clusters[0].workloads[0].colour:")
}

// What is wrong with a call's flags is said once, in two lines.
func TestCallMistakesAreSaidOnce(t *testing.T) {
	emptyRoot(t)
	for _, args := range []string{"call web http://cart -- --bogus", "call web cart", "trace web ftp://cart"} {
		if _, out, errOut := runLab(t, strings.Fields(args)...); out != "" || strings.Count(errOut, "\n") != 2 {
			t.Errorf("lab %s:\n%s%s", args, out, errOut)
		}
	}
}

func TestReport(t *testing.T) {
	notFound := &lab.StartError{Err: errors.New("find frob"), Errno: syscall.ENOENT}
	noProgram := &lab.StartError{Err: errors.New("start /etc/passwd"), Errno: syscall.EACCES}
	for _, c := range []struct {
		err  error
		code int
		want string
	}{
		{nil, 0, ""},
		{exitError(3), 3, ""},
		{errors.New("bad"), 1, "lab: bad\n"},
		{failure{startCode(notFound), notFound}, 127, "lab: find frob\n"},
		{failure{startCode(noProgram), noProgram}, 126, "lab: start /etc/passwd\n"},
	} {
		var errOut strings.Builder
		if code := report(&errOut, c.err); code != c.code || errOut.String() != c.want {
			t.Errorf("%v: exit %d, %q; want %d, %q", c.err, code, errOut.String(), c.code, c.want)
		}
	}
}

// A signal that ends what is under way says all there is to say; what was done regardless stays a success.
func TestSignalIsTheExitCode(t *testing.T) {
	emptyRoot(t)
	for sig, code := range map[syscall.Signal]exitError{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		ctx, stop := untilSignal(t.Context())
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		if err := unlessSignalled(ctx, fmt.Errorf("exec: %w", ctx.Err())); !errors.Is(err, code) {
			t.Errorf("%v: %v, want %v", sig, err, code)
		}
		if err := unlessSignalled(ctx, nil); err != nil {
			t.Errorf("%v: %v", sig, err)
		}
		stop()
	}
}

func TestBrief(t *testing.T) {
	long := strings.Repeat("é", 500)
	for problem, want := range map[string]string{
		"": "", "being deleted": "being deleted", long: long[:119*len("é")] + "…",
		`ended with exit code 137: {"level":"info"} | {"level":"warn"}`:                   "ended with exit code 137",
		"start pod shop/web: ended with exit code 1: panic: no\n\ngoroutine 1 [running]:": "start pod shop/web: ended with exit code 1",
	} {
		if got := brief(problem); got != want {
			t.Errorf("brief(%.40q) = %q, want %q", problem, got, want)
		}
	}
}

func TestCountPods(t *testing.T) {
	pods := []lab.PodInfo{{PodRef: lab.PodRef{Namespace: "istio-system"}}, {PodRef: lab.PodRef{Namespace: "shop"}}, {PodRef: lab.PodRef{Namespace: "plain"}}}
	if got, want := countPods(pods), "2 pods and 1 of the mesh"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestMissingBinariesNameTheCure(t *testing.T) {
	emptyRoot(t)
	t.Setenv("AMBIENTLAB_BIN", t.TempDir())
	code, _, errOut := runLab(t, "up", "two-pods")
	if code != 1 || !strings.Contains(errOut, "ztunnel") || !strings.Contains(errOut, "make build") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestListAndGcTellLabsFromFiles(t *testing.T) {
	root := emptyRoot(t)
	dead := labdir.Dir(filepath.Join(root, "dead"))
	lock, err := dead.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if _, out, _ := runLab(t, "list"); !strings.Contains(out, "dead") || !strings.Contains(out, "gc") {
		t.Errorf("list: %s", out)
	}
	if _, out, _ := runLab(t, "list", "-o", "json"); !strings.Contains(out, `"name": "dead"`) || !strings.Contains(out, `"stands": false`) {
		t.Errorf("list: %s", out)
	}
	if code, out, _ := runLab(t, "ps"); code != 0 || !strings.Contains(out, "no lab stands") || !strings.Contains(out, "gc") {
		t.Errorf("ps: exit %d, %s", code, out)
	}
	if code, out, _ := runLab(t, "gc"); code != 0 || !strings.Contains(out, "removed dead") {
		t.Errorf("gc: exit %d, %s", code, out)
	}
	if _, err := os.Stat(string(dead)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gc left the files: %v", err)
	}
}

func TestALabIsChosen(t *testing.T) {
	root := emptyRoot(t)
	for _, name := range []string{"a", "b"} {
		lock, err := labdir.Dir(filepath.Join(root, name)).Acquire()
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
	}
	for _, args := range []string{"down", "ps", "ps -o json"} {
		if code, out, errOut := runLab(t, strings.Fields(args)...); code != 2 || out != "" || !strings.Contains(errOut, "a, b") {
			t.Errorf("%s: exit %d: %s", args, code, errOut)
		}
	}
	if code, _, errOut := runLab(t, "--lab", "c", "down"); code != 1 || !strings.Contains(errOut, `"c"`) {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

// Every command explains itself: what it is for, and by examples.
func TestEveryCommandHasExamples(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Hidden {
				continue
			}
			if sub.Short == "" || sub.Example == "" {
				t.Errorf("%s: short %q, example %q", sub.CommandPath(), sub.Short, sub.Example)
			}
			check(sub)
		}
	}
	check((&app{}).root())
}
