// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/programs"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// budget is more than any step here takes.
const budget = 20 * time.Second

// binariesForTest are needed for a lab. Who names none wants no lab, and is told; who names a place means what is there.
func binariesForTest(t *testing.T) string {
	t.Helper()
	if os.Getenv("AMBIENTLAB_BIN") == "" {
		t.Skip("no lab was started: run `make build` and set AMBIENTLAB_BIN")
	}
	bin, err := FindBinaries("")
	if err != nil {
		t.Fatal(err) // it names the cure
	}
	return bin
}

// labRoot is a directory for labs, short enough for their sockets.
func labRoot(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	return root
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, name string) *topologies.Spec {
	t.Helper()
	spec, err := topologies.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func up(t *testing.T, spec *topologies.Spec) *lab.Lab {
	t.Helper()
	d := New(Options{})
	dir := filepath.Join(labRoot(t), spec.Name)
	if err := d.Up(within(t), spec, lab.UpOptions{Dir: dir, Bin: binariesForTest(t)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Down(context.Background()); err != nil { // after the test's own context
			t.Error(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Down left %s: %v", dir, err)
		}
	})
	return &lab.Lab{Driver: d, Spec: spec, Dir: dir}
}

var web = lab.PodRef{Namespace: "shop", Name: "web"}

func TestLab(t *testing.T) {
	binariesForTest(t)
	l := up(t, open(t, "two-pods"))
	testQuietStart(t, l)
	for name, test := range map[string]func(*testing.T, *lab.Lab){
		"pods": testPods, "call": testCall, "exec": testExec, "exec is killed": testExecKilled, "exec leaves something": testExecLeavesSomething, "isolation": testIsolation,
		"daemons": testDaemons, "capture": testCapture, "inspect": testInspect, "pods come and go": testApply, "a deleter goes": testDeleterGone, "services conflict": testServiceConflict, "network policies": testNetworkPolicy, "attach": testAttach, "terminal": testTerminal,
		"a second lab of that name": testTaken,
	} {
		t.Run(name, func(t *testing.T) { test(t, l) })
	}
}

// A healthy start gives nobody reason to complain.
func testQuietStart(t *testing.T, l *lab.Lab) {
	for _, name := range []string{"ztunnel.node1", "cni-agent.node1", "control", "hold"} {
		log, err := os.ReadFile(labdir.Dir(l.Dir).Log(name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "WARN") || strings.Contains(line, "ERROR") {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}

func testPods(t *testing.T, l *lab.Lab) {
	pods, err := l.Pods(within(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range pods {
		names = append(names, p.String())
		if !p.Ready || p.Enrolled != (p.Namespace == "shop") || len(p.IPs) != 2 || !p.IPs[0].Is4() || !p.IPs[1].Is6() || p.UID == "" {
			t.Errorf("%+v", p)
		}
	}
	if want := []string{"istio-system/istiod", "istio-system/ztunnel-node1", "shop/cart", "shop/web"}; !slices.Equal(names, want) {
		t.Errorf("pods %v, want %v", names, want)
	}
}

func testCall(t *testing.T, l *lab.Lab) {
	trace, err := l.Trace(within(t), web, "http://cart", workload.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !trace.Call.OK || len(trace.Missing) > 0 || len(trace.Legs) != 3 || trace.Legs[1].Protocol != lab.ProtoHBONE {
		t.Errorf("%+v", trace)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(budget); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", budget, what)
		}
	}
}

// Of the lab a pod sees nothing but what is its own.
func testIsolation(t *testing.T, l *lab.Lab) {
	for _, c := range []struct{ name, script, want string }{
		{"the lab's directory", "ls -A " + filepath.Dir(l.Dir) + " 2>&1 | grep -v 'No such file' | wc -l", "0"},
		{"the node's sockets", "ls /var/run/ztunnel /var/run/istio-cni 2>/dev/null | wc -l", "0"},
		{"processes", "ls -d /proc/[0-9]* | wc -l | xargs test 10 -gt && echo few", "few"},
		{"its own token", "wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token | xargs test 100 -lt && echo there", "there"},
		{"no CA token", "ls /var/run/secrets/tokens 2>/dev/null | wc -l", "0"},
		{"mounting", "mount -t tmpfs x /tmp 2>/dev/null || echo refused", "refused"},
		{"writing", "touch /usr/x 2>/dev/null || echo refused", "refused"},
		{"host name and names", "hostname; grep -c web /etc/hosts; grep -c svc.cluster.local /etc/resolv.conf", "web\n2\n1"},
	} {
		out, err := l.Output(within(t), web, "sh", "-c", c.script)
		if got := strings.TrimSpace(string(out)); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// visibleToPods is a directory of this user that pods see: they have a /tmp and a /run of their own.
func visibleToPods(t *testing.T) string {
	t.Helper()
	home, _ := os.UserHomeDir()
	wd, _ := os.Getwd()
	for _, dir := range []string{home, wd} {
		if dir != "" && !strings.HasPrefix(dir, "/tmp/") && !strings.HasPrefix(dir, "/run/") && !strings.HasPrefix(dir, "/var/tmp/") {
			return dir
		}
	}
	t.Skip("home and checkout both lie where pods see nothing of the host, so there is no control")
	return ""
}

// A lab may lie elsewhere than others of this user, which its pods see as little of; those that come later too.
func TestPodsSeeNoOtherLab(t *testing.T) {
	bin := binariesForTest(t)
	home, err := os.MkdirTemp(visibleToPods(t), ".ambientlab-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	t.Setenv("AMBIENTLAB_DIR", filepath.Join(home, "given"))
	t.Setenv("XDG_STATE_HOME", home)
	t.Setenv("HOME", home)
	t.Setenv("AMBIENTLAB_BIN", bin)
	var secrets []string
	write := func(root string) {
		secret := filepath.Join(root, "other", "ca", "key.pem")
		if err := errors.Join(os.MkdirAll(filepath.Dir(secret), 0o755), os.WriteFile(secret, []byte("secret"), 0o644)); err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, secret)
	}
	write(filepath.Join(home, "ambientlab"))
	write(home) // a control
	l := up(t, open(t, "two-pods"))
	write(filepath.Join(home, "given"))
	write(filepath.Join(home, ".local", "state", "ambientlab"))
	for _, secret := range secrets {
		var out bytes.Buffer
		exit, err := l.Exec(within(t), web, []string{"cat", secret}, lab.Stdio{Out: &out})
		if seen := exit == 0; err != nil || seen != (filepath.Dir(filepath.Dir(filepath.Dir(secret))) == home) {
			t.Errorf("%s: exit %d, %q, %v", secret, exit, out.String(), err)
		}
	}
}

func testDaemons(t *testing.T, l *lab.Lab) {
	ctx := within(t)
	for _, c := range []struct{ node, name, url string }{
		{"node1", lab.DaemonZtunnel, "http://ztunnel:15000/config_dump"},
		{"node1", lab.DaemonCNIAgent, "http://agent:8000/readyz"},
		{"", lab.DaemonControl, "http://control:15014/debug/snapshot"},
	} {
		d := l.Daemon(c.node, c.name)
		resp, err := (&http.Client{Transport: d.Admin()}).Get(c.url)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		resp.Body.Close()
		before, err := d.Status(ctx)
		if err != nil || !before.Running || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %+v, %v", c.name, resp.Status, before, err)
		}
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", before.PID)); strings.TrimSpace(string(comm)) != c.name {
			t.Errorf("%s: process %d is called %q", c.name, before.PID, comm)
		}
	}
	z := l.Daemon("node1", lab.DaemonZtunnel)
	if err := z.Signal(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ztunnel has ended", func() bool { s, err := z.Status(ctx); return err == nil && !s.Running && s.ExitCode == 137 })
	if err := errors.Join(z.Start(ctx), z.Ready(ctx)); err != nil {
		t.Fatal(err)
	}
	testCall(t, l)
	for range 5 {
		before, err := z.Status(ctx)
		if err := errors.Join(err, z.Signal(ctx, syscall.SIGKILL), z.Start(ctx), z.Ready(ctx)); err != nil {
			t.Fatal(err)
		}
		if after, err := z.Status(ctx); err != nil || !after.Running || after.PID == before.PID {
			t.Fatalf("started right after SIGKILL: %+v, %v; before %+v", after, err, before)
		}
	}
	testCall(t, l)
	if err := errors.Join(z.Restart(ctx), z.Ready(ctx)); err != nil {
		t.Fatal(err)
	}
	testCall(t, l)
	if _, err := l.Daemon("node9", lab.DaemonZtunnel).Status(ctx); err == nil || !strings.Contains(err.Error(), "node9") {
		t.Errorf("a daemon that is not there: %v", err)
	}
}

func testCapture(t *testing.T, l *lab.Lab) {
	for _, target := range []lab.Target{{Pod: web}, {Node: "node1"}} {
		c, err := l.Capture(within(t), target)
		if err != nil {
			t.Fatal(err)
		}
		testCall(t, l)
		packets, drops, err := c.Stop(within(t))
		if err != nil || drops != 0 || len(packets) < 1000 {
			t.Errorf("%s: %d bytes, %d drops, %v", target, len(packets), drops, err)
		}
		if _, _, err := c.Stop(within(t)); err == nil {
			t.Error("a second Stop succeeded")
		}
	}
	if _, err := l.Capture(within(t), lab.Target{Node: "node9"}); err == nil || !strings.Contains(err.Error(), "node9") {
		t.Errorf("a node that is not there: %v", err)
	}
	if _, err := l.Capture(within(t), lab.Target{Pod: web, Filter: "no such filter"}); err == nil {
		t.Error("a bad filter was accepted")
	}
}

func testInspect(t *testing.T, l *lab.Lab) {
	in, err := l.Inspect(within(t), lab.Target{Pod: web})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ part, want string }{
		{in.Links, "eth0"}, {in.Routes, "fwmark 0x111/0xfff lookup 100\n"}, {in.Routes, "table 100: local default dev lo\n"},
		{in.Rules, "15001"}, {in.Sockets, ":15008"},
	} {
		if !strings.Contains(c.part, c.want) {
			t.Errorf("no %q in\n%s", c.want, c.part)
		}
	}
	if in, err = l.Inspect(within(t), lab.Target{Node: "node1"}); err != nil || !strings.Contains(in.Rules, "shop/cart") {
		t.Errorf("node: %v\n%s", err, in.Rules)
	}
}

func testAttach(t *testing.T, l *lab.Lab) {
	other, err := Attach(within(t), labdir.Dir(l.Dir))
	if err != nil {
		t.Fatal(err)
	}
	if other.Spec.Name != "two-pods" || !other.Capabilities().Has(lab.CapIPv6) {
		t.Errorf("%+v, %v", other.Spec, other.Capabilities())
	}
	testCall(t, other)
}

func TestLinkIsCut(t *testing.T) {
	binariesForTest(t)
	spec := open(t, "three-nodes")
	l := up(t, spec)
	call := func(url string, timeout time.Duration) bool {
		res, err := l.Call(within(t), web, url, workload.Options{Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		return res.First().OK
	}
	const far, near = "http://stock", "http://batch.plain"
	if !call(far, budget/2) || !call(near, budget/2) {
		t.Fatal("calls fail before anything is cut")
	}
	link := l.Link("node1", "node2")
	if err := link.Cut(within(t)); err != nil {
		t.Fatal(err)
	}
	if call(far, 300*time.Millisecond) {
		t.Error("a call crosses the cut")
	}
	if !call(near, budget/2) {
		t.Error("a call that does not cross it fails")
	}
	if err := link.Restore(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "calls cross again", func() bool { return call(far, time.Second) })
	if err := l.Link("node1", "nowhere").Cut(within(t)); err == nil {
		t.Error("a link to nowhere was cut")
	}
}

func TestMissingBinariesNameThemselves(t *testing.T) {
	_, err := FindBinaries(t.TempDir())
	var missing *programs.MissingError
	if !errors.As(err, &missing) || len(missing.Missing) != len(binaries) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("%v", err)
	}
}

func TestOneClusterOnly(t *testing.T) {
	spec := *open(t, "two-pods")
	spec.Clusters = append(spec.Clusters, spec.Clusters[0])
	if err := New(Options{}).Up(t.Context(), &spec, lab.UpOptions{}); err == nil || !strings.Contains(err.Error(), "one cluster") {
		t.Errorf("%v", err)
	}
}
