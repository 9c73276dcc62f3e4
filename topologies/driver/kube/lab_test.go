// SPDX-License-Identifier: Apache-2.0

package kube

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
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Budgets of the test, on a machine that has other work.
const (
	budget   = 60 * time.Second
	upBudget = 3 * time.Minute
)

// docker reaches the nodes of a kind cluster on this machine.
type docker struct{}

func (docker) Exec(ctx context.Context, node string, argv []string, stdio lab.Stdio) (int, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"exec", "-i", node}, argv...)...)
	cmd.Stdout, cmd.Stderr = stdio.Out, stdio.Err
	if stdio.In != nil {
		in, err := cmd.StdinPipe()
		if err != nil {
			return 0, err
		}
		go func() { _, _ = io.Copy(in, stdio.In); in.Close() }()
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && ctx.Err() == nil {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// options are those of the cluster that the environment names.
func options(t *testing.T) Options {
	t.Helper()
	kubeconfig := os.Getenv("AMBIENTLAB_KUBECONFIG")
	if kubeconfig == "" {
		t.Skip("no cluster: AMBIENTLAB_KUBECONFIG names the kubeconfig of a kind cluster whose nodes have the image $AMBIENTLAB_IMAGE and the program capture")
	}
	return Options{Kubeconfig: kubeconfig, Image: os.Getenv("AMBIENTLAB_IMAGE"), Host: docker{}, NetworkPolicy: true, Progress: func(what string) { t.Log(what) }}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	t.Cleanup(cancel)
	return ctx
}

// up brings a lab up, and checks at the end that nothing is left of it.
func up(t *testing.T, topology string) *lab.Lab {
	t.Helper()
	d := New(options(t))
	ctx, cancel := context.WithTimeout(t.Context(), upBudget)
	defer cancel()
	began := time.Now()
	s := spec(t, topology)
	if err := d.Up(ctx, s, lab.UpOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("up in %s", time.Since(began))
	t.Cleanup(func() {
		began := time.Now()
		at := d.stand
		down, cancel := context.WithTimeout(context.Background(), upBudget)
		defer cancel()
		for range 2 {
			if err := d.Down(down); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("down in %s", time.Since(began))
		checkNothingLeft(down, t, at)
	})
	return &lab.Lab{Driver: d, Spec: s}
}

func checkNothingLeft(ctx context.Context, t *testing.T, s *stand) {
	t.Helper()
	kinds, err := s.api.kinds()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		for _, label := range []string{LabelLab, LabelGuest, labelMember, labelNode} {
			list, err := s.api.dyn.Resource(k.resource).List(ctx, metav1.ListOptions{LabelSelector: label})
			if err != nil {
				continue
			}
			for i := range list.Items {
				t.Errorf("%s is left, with label %s", name(&list.Items[i]), label)
			}
		}
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Down left %s: %v", s.dir, err)
	}
}

var web = lab.PodRef{Namespace: "shop", Name: "web"}

func TestLab(t *testing.T) {
	l := up(t, "two-nodes")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *lab.Lab)
	}{
		{"pods", testPods}, {"call", testCall}, {"exec", testExec}, {"exec is killed", testExecKilled}, {"terminal", testTerminal}, {"objects", testObjects},
		{"pods come and go", testPodsComeAndGo}, {"capture", testCapture}, {"inspect", testInspect}, {"link", testLink}, {"daemons", testDaemons},
		{"signals", testSignals}, {"stop and start", testStopStart}, {"replace", testReplace}, {"logs", testLogs}, {"a second lab", testSecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			began := time.Now()
			test.run(t, l)
			t.Logf("%s", time.Since(began))
		})
	}
}

func testPods(t *testing.T, l *lab.Lab) {
	pods, err := l.Pods(within(t))
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]string{}
	for _, p := range pods {
		nodes[p.String()] = p.Node
		if p.Namespace == "shop" && (!p.Ready || !p.Enrolled || len(p.IPs) == 0 || p.UID == "") || p.Namespace == "plain" && p.Enrolled {
			t.Errorf("%+v", p)
		}
	}
	if nodes["shop/web"] != "node1" || nodes["shop/cart"] != "node2" {
		t.Errorf("pods on nodes: %v", nodes)
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
	exit, err := l.Exec(within(t), web, []string{"workload", "nonsense"}, lab.Stdio{In: strings.NewReader("said"), Out: &out, Err: &errOut})
	if err != nil || exit != 2 || out.Len() > 0 || !strings.Contains(errOut.String(), "unknown command") {
		t.Errorf("exit %d, %v, stdout %q, stderr %q", exit, err, out.String(), errOut.String())
	}
	for name, errno := range map[string]syscall.Errno{"no-such-thing": syscall.ENOENT, "/no/such/thing": syscall.ENOENT, "/etc": syscall.EACCES} {
		_, err := l.Exec(within(t), web, []string{name}, lab.Stdio{})
		if refused := (*lab.StartError)(nil); !errors.As(err, &refused) || refused.Errno != errno || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want %v", name, err, errno)
		}
	}
	if _, err := l.Exec(within(t), lab.PodRef{Namespace: "shop", Name: "nobody"}, []string{"true"}, lab.Stdio{}); err == nil || !strings.Contains(err.Error(), "shop/nobody") {
		t.Errorf("a pod that is not there: %v", err)
	}
}

func testExecKilled(t *testing.T, l *lab.Lab) {
	ctx, cancel := context.WithCancel(within(t))
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := l.Exec(ctx, web, []string{"workload", "serve", "--http", "7070"}, lab.Stdio{Out: w})
		w.Close()
		done <- err
	}()
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatal(line, err)
	}
	listens := func() bool {
		in, err := l.Inspect(within(t), lab.Target{Pod: web})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(in.Sockets, ":7070 ")
	}
	if !listens() {
		t.Error("control: it does not listen")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("exec after cancel: %v", err)
	}
	if listens() {
		t.Error("the process is still there")
	}
}

func testTerminal(t *testing.T, l *lab.Lab) {
	var out bytes.Buffer
	sizes := make(chan lab.WindowSize)
	exit, err := l.Exec(within(t), web, []string{"workload", "nonsense"}, lab.Stdio{Out: &out, TTY: &lab.Terminal{Size: lab.WindowSize{Rows: 30, Cols: 100}, Resize: sizes}})
	if err != nil || exit != 2 || !strings.Contains(out.String(), "\r\n") {
		t.Errorf("exit %d, %v, %q", exit, err, out.String())
	}
	_, err = l.Exec(within(t), web, []string{"no-such-thing"}, lab.Stdio{Out: &out, TTY: &lab.Terminal{}})
	if refused := (*lab.StartError)(nil); !errors.As(err, &refused) || refused.Errno != syscall.ENOENT {
		t.Errorf("%v", err)
	}
}

func testObjects(t *testing.T, l *lab.Lab) {
	svc := func() *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "extra"}}
		s.Spec.Selector = map[string]string{"app": "cart"}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
		return s
	}
	if err := l.Get(within(t), svc()); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("before: %v", err)
	}
	if err := l.Apply(within(t), svc()); err != nil {
		t.Fatal(err)
	}
	got := svc()
	if err := l.Get(within(t), got); err != nil || got.Spec.ClusterIP == "" || got.Labels[LabelLab] != "two-nodes" {
		t.Errorf("%+v, %v", got, err)
	}
	for range 2 {
		if err := l.Delete(within(t), svc()); err != nil {
			t.Error(err)
		}
	}
	if err := l.Get(within(t), svc()); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("after: %v", err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	if err := l.Get(within(t), pod); err != nil || pod.Spec.NodeName != "node1" || pod.Status.PodIP == "" {
		t.Errorf("%s %s, %v", pod.Spec.NodeName, pod.Status.PodIP, err)
	}
}

// podOf is a pod of the topology under another name.
func podOf(t *testing.T, l *lab.Lab, name string) *corev1.Pod {
	t.Helper()
	objs, err := l.Spec.Objects(l.Spec.Clusters[0].Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objs {
		if p, ok := o.(*corev1.Pod); ok && p.Namespace == web.Namespace && p.Name == web.Name {
			p.Name = name
			return p
		}
	}
	t.Fatal("no pod web")
	return nil
}

func testPodsComeAndGo(t *testing.T, l *lab.Lab) {
	p := podOf(t, l, "late")
	p.Spec.NodeName = ""
	if err := l.Apply(within(t), p); err != nil {
		t.Fatal(err)
	}
	ref := refOf(p)
	first, err := l.AwaitPod(within(t), ref, "ready and enrolled", func(p lab.PodInfo) bool { return p.Ready && p.Enrolled })
	if err != nil || first.Node != "node1" {
		t.Fatal(first, err)
	}
	p.Labels["extra"] = "1"
	delete(p.Labels, "version")
	if err := l.Apply(within(t), p); err != nil {
		t.Fatal(err)
	}
	again, err := l.Find(within(t), ref)
	if err != nil || again.UID != first.UID || again.Labels["extra"] != "1" || again.Labels["version"] != "" {
		t.Errorf("%+v, %v", again, err)
	}
	if err := l.Delete(within(t), p); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Find(within(t), ref); err == nil {
		t.Error("it is listed after Delete")
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
		{in.Links, "eth0"}, {in.Routes, "fwmark 0x111/0xfff lookup 100"}, {in.Routes, "table 100"}, {in.Rules, "15001"}, {in.Sockets, ":15008"},
	} {
		if !strings.Contains(c.part, c.want) {
			t.Errorf("no %q in\n%s", c.want, c.part)
		}
	}
}

func testLink(t *testing.T, l *lab.Lab) {
	call := func() bool {
		res, err := l.Call(within(t), web, "http://cart", workload.Options{Timeout: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return res.First().OK
	}
	if !call() {
		t.Fatal("a call fails before anything is cut")
	}
	link := l.Link("node1", "node2")
	if err := link.Cut(within(t)); err != nil {
		t.Fatal(err)
	}
	if call() {
		t.Error("a call crosses the cut")
	}
	for range 2 {
		if err := link.Restore(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "calls cross again", call)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(budget); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", budget, what)
		}
	}
}

func testDaemons(t *testing.T, l *lab.Lab) {
	for _, c := range []struct{ node, name, url string }{
		{"node1", lab.DaemonZtunnel, "http://ztunnel:15000/config_dump"}, {"node1", lab.DaemonCNIAgent, "http://agent:8000/readyz"},
		{"", lab.DaemonControl, "http://control:15014/debug/snapshot"},
	} {
		d := l.Daemon(c.node, c.name)
		resp, err := (&http.Client{Transport: d.Admin()}).Get(c.url)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		resp.Body.Close()
		st, err := d.Status(within(t))
		if err != nil || !st.Running || st.PID == 0 || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %+v, %v", c.name, resp.Status, st, err)
		}
	}
	const many = 50
	began := time.Now()
	for range many {
		if _, err := l.ReadPage(within(t), lab.Page{Node: "node1", Daemon: lab.DaemonZtunnel, Port: 15020, Path: "/metrics"}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("a page in %s", time.Since(began)/many)
	res, err := (&http.Client{Transport: l.Daemon("node1", lab.DaemonZtunnel).Admin()}).Get("http://x:1/")
	if err == nil {
		res.Body.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port where nobody listens: %v", err)
	}
	if _, err := l.Daemon("node9", lab.DaemonZtunnel).Status(within(t)); err == nil || !strings.Contains(err.Error(), "node9") {
		t.Errorf("a daemon that is not there: %v", err)
	}
}

func testSignals(t *testing.T, l *lab.Lab) {
	for _, d := range []lab.Daemon{l.Daemon("node1", lab.DaemonZtunnel), l.Daemon("node1", lab.DaemonCNIAgent), l.Daemon("", lab.DaemonControl)} {
		before, err := d.Status(within(t))
		if err := errors.Join(err, d.Signal(within(t), syscall.SIGKILL)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.Start(within(t)), d.Ready(within(t))); err != nil {
			t.Fatal(err)
		}
		if after, err := d.Status(within(t)); err != nil || !after.Running || after.PID == before.PID {
			t.Errorf("started after SIGKILL: %+v, %v; before %+v", after, err, before)
		}
	}
	testCall(t, l)
}

func testStopStart(t *testing.T, l *lab.Lab) {
	for _, k := range []key{{"node1", lab.DaemonZtunnel}, {"node2", lab.DaemonCNIAgent}, {"", lab.DaemonControl}} {
		d := l.Daemon(k.node, k.daemon)
		if err := d.Stop(within(t)); err != nil {
			t.Fatal(err)
		}
		if st, err := d.Status(within(t)); err != nil || st.Running {
			t.Errorf("%s after Stop: %+v, %v", k, st, err)
		}
		for _, env := range [][]string{{"AMBIENTLAB_TEST=1"}, nil} {
			if err := errors.Join(d.Restart(within(t), env...), d.Ready(within(t))); err != nil {
				t.Fatal(err)
			}
			pod := l.Driver.(*Driver).stand.fleet.pod(k)
			has := slices.ContainsFunc(pod.Spec.Containers[0].Env, func(e corev1.EnvVar) bool { return e.Name == "AMBIENTLAB_TEST" })
			if has != (env != nil) {
				t.Errorf("%s with %q: has it %v", k, env, has)
			}
		}
	}
	testCall(t, l)
}

func testReplace(t *testing.T, l *lab.Lab) {
	for _, env := range [][]string{nil, {"AMBIENTLAB_TEST=1"}, nil} {
		errs := make(chan error, 2)
		for _, node := range []string{"node1", "node2"} {
			go func() { errs <- l.Daemon(node, lab.DaemonZtunnel).Replace(within(t), env...) }()
		}
		if err := errors.Join(<-errs, <-errs); err != nil {
			t.Fatal(err)
		}
		testCall(t, l)
	}
	if err := l.Daemon("node1", lab.DaemonCNIAgent).Replace(within(t)); err == nil {
		t.Error("an agent was replaced")
	}
}

// Logs are whole, over all that the tests before have done to the daemons.
func testLogs(t *testing.T, l *lab.Lab) {
	r, err := l.Daemon("node1", lab.DaemonZtunnel).Logs(within(t), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	const atStart = "applications will see their clients' addresses"
	if starts := strings.Count(string(text), atStart); starts < 8 { // Up, a signal, three starts, three replacements
		t.Errorf("%d starts in\n%s", starts, text[:min(len(text), 4000)])
	}
}

func testSecond(t *testing.T, _ *lab.Lab) {
	err := New(options(t)).Up(within(t), spec(t, "two-pods"), lab.UpOptions{})
	if !errors.Is(err, lab.ErrOccupied) || !strings.Contains(fmt.Sprint(err), "two-nodes") {
		t.Errorf("%v", err)
	}
}
