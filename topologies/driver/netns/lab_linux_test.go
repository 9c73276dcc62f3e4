// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
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

// Whenever Up is interrupted, nothing is left: neither before the holder has spoken, nor while its nodes are half made.
func TestUpInterrupted(t *testing.T) {
	bin := binariesForTest(t)
	root := labRoot(t)
	spec := open(t, "three-nodes")
	for after := time.Duration(0); after < 120*time.Millisecond; after += 4 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		dir := filepath.Join(root, after.String())
		err := New(Options{Detach: after%(8*time.Millisecond) == 0}).Up(ctx, spec, lab.UpOptions{Dir: dir, Bin: bin})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Up, interrupted after %s: %v", after, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			log, _ := os.ReadFile(labdir.Dir(dir).Log("hold"))
			t.Errorf("Up, interrupted after %s, left %s: %v\n%s", after, dir, err, log)
		}
	}
}

var web = lab.PodRef{Namespace: "shop", Name: "web"}

func TestLab(t *testing.T) {
	binariesForTest(t)
	l := up(t, open(t, "two-pods"))
	testQuietStart(t, l)
	for name, test := range map[string]func(*testing.T, *lab.Lab){
		"pods": testPods, "call": testCall, "exec": testExec, "exec is killed": testExecKilled, "exec leaves something": testExecLeavesSomething, "isolation": testIsolation,
		"daemons": testDaemons, "capture": testCapture, "inspect": testInspect, "pods come and go": testApply, "a deleter goes": testDeleterGone, "services conflict": testServiceConflict, "attach": testAttach, "terminal": testTerminal,
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

func testExec(t *testing.T, l *lab.Lab) {
	var out, errOut bytes.Buffer
	exit, err := l.Exec(within(t), web, []string{"sh", "-c", "cat; echo complaint >&2; exit 3"}, lab.Stdio{In: strings.NewReader("said"), Out: &out, Err: &errOut})
	if err != nil || exit != 3 || out.String() != "said" || errOut.String() != "complaint\n" {
		t.Errorf("exit %d, %v, stdout %q, stderr %q", exit, err, out.String(), errOut.String())
	}
	if exit, err := l.Exec(within(t), web, []string{"sh", "-c", "kill -TERM $$"}, lab.Stdio{}); err != nil || exit != 143 {
		t.Errorf("a process that a signal ended: exit %d, %v; want 143", exit, err)
	}
	for name, errno := range map[string]syscall.Errno{
		"no-such-thing": syscall.ENOENT, "/no/such/thing": syscall.ENOENT, "/etc/passwd": syscall.EACCES, "/etc": syscall.EACCES,
	} {
		_, err := l.Exec(within(t), web, []string{name}, lab.Stdio{})
		if refused := (*lab.StartError)(nil); !errors.As(err, &refused) || refused.Errno != errno || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want %v", name, err, errno)
		}
	}
	if _, err := l.Exec(within(t), lab.PodRef{Namespace: "shop", Name: "nobody"}, []string{"true"}, lab.Stdio{}); err == nil || !strings.Contains(err.Error(), "shop/nobody") {
		t.Errorf("a pod that is not there: %v", err)
	}
}

// What a command leaves behind keeps its streams open, but nobody waiting; what was printed by its end has arrived.
func testExecLeavesSomething(t *testing.T, l *lab.Lab) {
	for name, c := range map[string]struct {
		script string
		ctx    func() (context.Context, context.CancelFunc)
		want   error
	}{
		"it ends": {"setsid sleep 1000 & echo done", func() (context.Context, context.CancelFunc) { return context.WithCancel(within(t)) }, nil},
		"its caller gives up": {"setsid sleep 1000 & echo done; wait", func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(within(t), 200*time.Millisecond)
		}, context.DeadlineExceeded},
	} {
		var out bytes.Buffer
		ctx, cancel := c.ctx()
		_, err := l.Exec(ctx, web, []string{"sh", "-c", c.script}, lab.Stdio{Out: &out})
		cancel()
		if !errors.Is(err, c.want) || out.String() != "done\n" {
			t.Errorf("%s: %v, %q; want %v and what it said", name, err, out.String(), c.want)
		}
	}
	if _, err := l.Output(within(t), web, "sh", "-c", "for p in /proc/[0-9]*; do grep -q sleep $p/comm && kill ${p#/proc/}; done; true"); err != nil {
		t.Error(err)
	}
}

func testExecKilled(t *testing.T, l *lab.Lab) {
	ctx, cancel := context.WithCancel(within(t))
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := l.Exec(ctx, web, []string{"sh", "-c", "echo started; sleep 1000 & wait"}, lab.Stdio{Out: w})
		done <- err
	}()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("exec after cancel: %v", err)
	}
	if log, err := os.ReadFile(labdir.Dir(l.Dir).Log("hold")); err != nil || strings.Contains(string(log), "canceled") {
		t.Errorf("the holder makes a fuss: %v\n%s", err, log)
	}
	eventually(t, "the process and its child are gone", func() bool {
		out, err := l.Output(within(t), web, "sh", "-c", "cat /proc/[0-9]*/comm")
		return err == nil && !strings.Contains(string(out), "sleep")
	})
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

// A lab may lie elsewhere than others of this user, which its pods see as little of; those that come later too.
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

func testApply(t *testing.T, l *lab.Lab) {
	ctx := within(t)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "late", Labels: map[string]string{"app": "late"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Command: []string{"workload", "serve", "--http", "8080"}}}},
	}
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "late"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "late"}, Ports: []corev1.ServicePort{{Name: "http", Port: 8080}}},
	}
	if err := l.Apply(ctx, pod, svc); err != nil {
		t.Fatal(err)
	}
	ref := lab.PodRef{Namespace: "shop", Name: "late"}
	info, err := l.AwaitPod(ctx, ref, "ready", func(p lab.PodInfo) bool { return p.Ready && p.Enrolled })
	if err != nil || info.Node != "node1" {
		t.Fatalf("%+v, %v", info, err)
	}
	eventually(t, "the new service answers", func() bool {
		res, err := l.Call(ctx, web, "http://late:8080", workload.Options{})
		return err == nil && res.First().OK
	})
	pod.Labels["istio.io/dataplane-mode"] = "none"
	if err := l.Apply(ctx, pod); err != nil {
		t.Fatal(err)
	}
	after, err := l.AwaitPod(ctx, ref, "out of the mesh", func(p lab.PodInfo) bool { return p.Ready && !p.Enrolled })
	if err != nil || after.UID != info.UID {
		t.Errorf("%+v, %v; want the same pod", after, err)
	}
	if err := l.Delete(ctx, pod, svc); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Find(ctx, ref); err == nil {
		t.Error("the pod is still there")
	}
	if err := l.Delete(ctx, pod, svc); err != nil {
		t.Errorf("a second Delete: %v", err)
	}
	if err := errors.Join(l.Apply(ctx, pod), l.Delete(ctx, pod)); err != nil {
		t.Errorf("a pod that is deleted while it starts: %v", err)
	}
	if err := l.Apply(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if again, err := l.AwaitPod(ctx, ref, "ready", func(p lab.PodInfo) bool { return p.Ready }); err != nil || again.UID == info.UID {
		t.Errorf("%+v, %v; want a new pod of that name", again, err)
	}
	if err := l.Delete(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "lost"}, Spec: corev1.PodSpec{NodeName: "node9"}}); err == nil {
		t.Error("a pod on a node that is not there was accepted")
	}
}

// A pod that is being deleted is taken away wholly, whether or not its deleter waits.
func testDeleterGone(t *testing.T, l *lab.Lab) {
	grace := int64(1)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "stubborn", Labels: map[string]string{"istio.io/dataplane-mode": "none"}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "app", Command: []string{"sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"}}},
		},
	}
	if err := l.Apply(within(t), pod); err != nil {
		t.Fatal(err)
	}
	ref := lab.PodRef{Namespace: pod.Namespace, Name: pod.Name}
	info, err := l.AwaitPod(within(t), ref, "ready", func(p lab.PodInfo) bool { return p.Ready })
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is deaf", func() bool {
		log, err := os.ReadFile(labdir.Dir(l.Dir).PodLog(ref.Namespace, ref.Name))
		return err == nil && strings.Contains(string(log), "deaf")
	})
	leases := func() (held []string) {
		for _, ip := range info.IPs {
			files, err := filepath.Glob(labdir.Dir(l.Dir).Node(info.Node, "ipam", "*", strings.ReplaceAll(ip.String(), ":", "?")))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, files...)
		}
		return held
	}
	if len(leases()) != len(info.IPs) {
		t.Fatalf("leases %v of %v", leases(), info.IPs)
	}
	ctx, cancel := context.WithTimeout(within(t), 100*time.Millisecond)
	defer cancel()
	if err := l.Delete(ctx, pod); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Delete: %v; want it given up", err)
	}
	eventually(t, "the pod is gone", func() bool { _, err := l.Find(within(t), ref); return err != nil })
	if held := leases(); len(held) > 0 {
		t.Errorf("the pod is gone, but not its leases %v", held)
	}
}

// A service that wants another's frontend gets a line in the log; the rest of the cluster goes on changing.
func testServiceConflict(t *testing.T, l *lab.Lab) {
	ctx := within(t)
	service := func(name, clusterIP string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec: corev1.ServiceSpec{
				ClusterIP: clusterIP, Selector: map[string]string{"app": "cart"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
			},
		}
	}
	first, second, other := service("first", "10.96.77.1"), service("second", "10.96.77.1"), service("other", "10.96.77.2")
	if err := l.Apply(ctx, first, second, other); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{"10.96.77.1", "10.96.77.2"} {
		eventually(t, ip+" answers", func() bool {
			res, err := l.Call(ctx, web, "http://"+ip, workload.Options{})
			return err == nil && res.First().OK
		})
	}
	eventually(t, "the log names the second service", func() bool {
		log, err := os.ReadFile(labdir.Dir(l.Dir).Log("hold"))
		return err == nil && strings.Contains(string(log), "shop/second")
	})
	eventually(t, "the node has what comes after it", func() bool {
		in, err := l.Inspect(ctx, lab.Target{Node: "node1"})
		return err == nil && strings.Contains(in.Rules, "10.96.77.2")
	})
	if err := l.Delete(ctx, first, second, other); err != nil {
		t.Error(err)
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

func testTaken(t *testing.T, l *lab.Lab) {
	err := New(Options{}).Up(within(t), l.Spec, lab.UpOptions{Dir: l.Dir})
	if !errors.Is(err, labdir.ErrTaken) || !strings.Contains(err.Error(), "lab down") {
		t.Errorf("%v, want ErrTaken and the cure", err)
	}
	testCall(t, l)
}

// Who comes while a lab boots finds what is there by then, and disturbs nothing: a pod that is deleted is not waited for.
func TestLabIsUsedWhileItBoots(t *testing.T) {
	bin := binariesForTest(t)
	d := New(Options{})
	dir := filepath.Join(labRoot(t), "boots")
	booted := make(chan error, 1)
	go func() { booted <- d.Up(within(t), open(t, "three-nodes"), lab.UpOptions{Dir: dir, Bin: bin}) }()
	t.Cleanup(func() { _ = d.Down(context.Background()) }) // after the test's own context
	early := &Driver{dir: labdir.Dir(dir)}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: web.Namespace, Name: web.Name}}
	eventually(t, "the pod is known", func() bool {
		_, _ = early.Inspect(within(t), lab.Target{Node: "node1"})
		_, _ = early.Daemon("node1", lab.DaemonCNIAgent).Status(within(t))
		pods, err := early.Pods(within(t))
		return err == nil && slices.ContainsFunc(pods, func(p lab.PodInfo) bool { return p.PodRef == web })
	})
	if err := early.Delete(within(t), pod); err != nil {
		t.Error(err)
	}
	if err := <-booted; err != nil {
		t.Fatal(err)
	}
	pods, err := d.Pods(within(t))
	if err != nil || len(pods) == 0 || slices.ContainsFunc(pods, func(p lab.PodInfo) bool { return p.PodRef == web }) {
		t.Errorf("after the boot: %v, %v; want all pods but the one that was deleted", pods, err)
	}
}

func TestLabsStandSideBySide(t *testing.T) {
	binariesForTest(t)
	a, b := up(t, open(t, "two-pods")), up(t, open(t, "two-pods"))
	testCall(t, a)
	testCall(t, b)
}

// Labs that the driver names itself find room beside each other, and gc finds all of them.
func TestUniqueLabsOfOneName(t *testing.T) {
	bin, root := binariesForTest(t), labRoot(t)
	t.Setenv("AMBIENTLAB_DIR", root)
	const n = 3
	drivers := make([]*Driver, n)
	errs := make(chan error, n)
	for i := range drivers {
		drivers[i] = New(Options{})
		go func() { errs <- drivers[i].Up(within(t), open(t, "two-pods"), lab.UpOptions{Bin: bin, Unique: true}) }()
	}
	for range drivers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	var dirs []string
	for _, d := range drivers {
		dirs = append(dirs, d.Dir())
	}
	slices.Sort(dirs)
	want := []string{root + "/two-pods", root + "/two-pods-2", root + "/two-pods-3"}
	if !slices.Equal(dirs, want) {
		t.Errorf("labs in %v, want %v", dirs, want)
	}
	if labs, err := labdir.List(root); err != nil || len(labs) != n {
		t.Errorf("listed %v, %v", labs, err)
	}
	err := New(Options{}).Up(within(t), open(t, "two-pods"), lab.UpOptions{Bin: bin})
	if !errors.Is(err, labdir.ErrTaken) {
		t.Errorf("not unique: %v, want ErrTaken", err)
	}
	for _, d := range drivers {
		if err := d.Down(within(t)); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(root + "/*"); len(left) > 0 {
		t.Errorf("Down left %v", left)
	}
}

func TestLinkIsCut(t *testing.T) {
	binariesForTest(t)
	spec := open(t, "three-nodes")
	l := up(t, spec)
	call := func(url string) bool {
		res, err := l.Call(within(t), web, url, workload.Options{Timeout: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return res.First().OK
	}
	const far, near = "http://stock", "http://batch.plain"
	if !call(far) || !call(near) {
		t.Fatal("calls fail before anything is cut")
	}
	link := l.Link("node1", "node2")
	if err := link.Cut(within(t)); err != nil {
		t.Fatal(err)
	}
	if call(far) {
		t.Error("a call crosses the cut")
	}
	if !call(near) {
		t.Error("a call that does not cross it fails")
	}
	if err := link.Restore(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "calls cross again", func() bool { return call(far) })
	if err := l.Link("node1", "nowhere").Cut(within(t)); err == nil {
		t.Error("a link to nowhere was cut")
	}
}

// descendants are all processes below pid.
func descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], child)
	}
	var all []int
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		all = append(all, children[next[0]]...)
		next = append(next, children[next[0]]...)
	}
	return all
}

func awaitGone(t *testing.T, pids []int) {
	t.Helper()
	if len(pids) < 5 {
		t.Fatalf("only %d processes in the lab", len(pids))
	}
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return syscall.Kill(pid, 0) != nil })
	}
}

func TestKilledHolderLeavesNothingButFiles(t *testing.T) {
	bin := binariesForTest(t)
	root := labRoot(t)
	d := New(Options{})
	if err := d.Up(within(t), open(t, "two-pods"), lab.UpOptions{Dir: filepath.Join(root, "dies"), Bin: bin}); err != nil {
		t.Fatal(err)
	}
	pid := d.holder.cmd.Process.Pid
	pids := descendants(pid)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-d.Ended()
	awaitGone(t, pids)
	if _, err := d.Pods(within(t)); err == nil {
		t.Error("a lab without a holder answers")
	}
	if removed, err := labdir.Collect(root); err != nil || !slices.Equal(removed, []string{"dies"}) {
		t.Errorf("gc removed %v, %v", removed, err)
	}
	if err := d.Down(within(t)); err != nil {
		t.Errorf("Down afterwards: %v", err)
	}
}

// Whoever holds the pipe, here `lab up`, is killed: the holder notices and takes the lab down.
func TestLabEndsWithWhoHoldsItsPipe(t *testing.T) {
	bin := binariesForTest(t)
	root := labRoot(t)
	cmd := exec.Command(filepath.Join(bin, "lab"), "up", "two-pods")
	cmd.Env = append(os.Environ(), "AMBIENTLAB_DIR="+root, "AMBIENTLAB_BIN="+bin)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(said); lines.Scan() && !strings.Contains(lines.Text(), "Ctrl-C"); {
		t.Log(lines.Text())
	}
	pids := descendants(cmd.Process.Pid)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	awaitGone(t, pids)
	eventually(t, "the lab's files are gone", func() bool {
		left, _ := filepath.Glob(filepath.Join(root, "*"))
		return len(left) == 0
	})
}

func TestMissingBinariesNameThemselves(t *testing.T) {
	_, err := FindBinaries(t.TempDir())
	var missing *BinaryError
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

func TestOnlyThisUsersHolderIsTrusted(t *testing.T) {
	for uid, ok := range map[uint32]bool{0: true, uint32(os.Geteuid()): true, uint32(os.Geteuid()) + 1: false} {
		if err := trustedUID(uid); (err == nil) != ok {
			t.Errorf("user %d: %v", uid, err)
		}
	}
}
