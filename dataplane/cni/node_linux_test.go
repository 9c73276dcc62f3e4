// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/cni/plugin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// node is a node with everything real but the proxy: files, namespaces, rules, sockets, the plugin.
type node struct {
	t       *testing.T
	dir     string
	host    *netns.NS
	proxy   *proxy
	admit   time.Duration // 0: the default
	stopped func()
}

func newNode(t *testing.T) *node {
	t.Helper()
	nstest.Require(t)
	host, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	n := &node{t: t, dir: t.TempDir(), host: host, proxy: &proxy{journal: newJournal(), pods: map[string]uint64{}}}
	for _, d := range []string{"objects", "netns"} {
		if err := os.Mkdir(filepath.Join(n.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func (n *node) path(elem ...string) string { return filepath.Join(append([]string{n.dir}, elem...)...) }

// start runs an agent until the test or n.stop ends it.
func (n *node) start() {
	n.t.Helper()
	status, err := NewStatusDir(n.path("objects", "status", "cni-agent.node1"))
	if err != nil {
		n.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	var a *Agent
	server := zds.NewServer(zds.ServerConfig{Path: n.path("zds"), Snapshot: func() []zds.Entry { return a.Snapshot() }, Log: log, AcceptsPerSecond: 1000})
	a = New(Config{
		Node: "node1", Objects: file.New(n.path("objects"), log), Proxies: server, Rules: KernelRules{}, Netns: NetnsDir(n.path("netns")),
		Annotator: status, HostNetns: n.host, ExcludeNamespaces: []string{"kube-system"}, AdmitTimeout: n.admit, Log: log,
	})
	l, err := ListenPlugin(n.t.Context(), n.path("plugin"))
	if err != nil {
		n.t.Fatal(err)
	}
	n.stopped = run(n.t, a, l)
}

// connect runs a proxy until the test ends.
func (n *node) connect() {
	ctx, cancel := context.WithCancel(n.t.Context())
	client := zds.NewClient(zds.ClientConfig{
		Path: n.path("zds"), Handler: n.proxy, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	n.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
}

func (n *node) write(o source.Object) {
	n.t.Helper()
	kind := strings.ToLower(o.GetObjectKind().GroupVersionKind().Kind)
	name := strings.Trim(strings.Join([]string{kind, o.GetNamespace(), o.GetName()}, "."), ".")
	b, err := json.Marshal(o)
	if err != nil {
		n.t.Fatal(err)
	}
	path := n.path("objects", strings.ReplaceAll(name, "..", ".")+".yaml")
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) namespace(name, mode string) {
	o := namespace(name, mode)
	o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}
	n.write(o)
}

// pod makes a pod's namespace and its object.
func (n *node) pod(name string, opts ...func(*corev1.Pod)) *netns.NS {
	ns := nstest.New(n.t)
	if err := os.WriteFile(n.path("netns", "uid-"+name), []byte(nsPath(ns)), 0o644); err != nil {
		n.t.Fatal(err)
	}
	o := pod(name, opts...)
	o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	o.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
	n.write(o)
	return ns
}

func nsPath(ns *netns.NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()) }

// add runs the plugin's ADD for a pod.
func (n *node) add(name string, ns *netns.NS) error {
	stdin := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","type":"ambient-cni","objectsDir":%q,"pluginSocket":%q,
		"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.5/24"}]}}`, n.path("objects"), n.path("plugin"))
	var out, log bytes.Buffer
	p := plugin.Plugin{Stdout: &out, Stderr: &log}
	return p.Funcs(n.t.Context()).Add(&skel.CmdArgs{
		ContainerID: "c", Netns: nsPath(ns), IfName: "eth0", StdinData: []byte(stdin),
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" + name + ";K8S_POD_UID=uid-" + name,
	})
}

// annotated waits until the pod's annotation is want: it is written after the proxy has answered.
func (n *node) annotated(name, want string) {
	n.t.Helper()
	eventually(n.t, "annotation "+want+" of "+name, func() bool {
		o, problems, err := file.Read(n.path("objects"))
		if err != nil || len(problems) > 0 {
			n.t.Fatal(err, problems)
		}
		return o.Pods["shop/"+name].Annotations[mesh.AnnotationRedirection] == want
	})
}

// captured fails the test unless the namespace has all of the plan's rules, or nothing at all.
func (n *node) captured(ns *netns.NS, want bool) {
	n.t.Helper()
	if want {
		diff, err := capture.Diff(n.t.Context(), ns, capture.NewPlan(capture.Options{IPv4: true, IPv6: true}))
		if err != nil || len(diff) > 0 {
			n.t.Errorf("rules: %q, %v", diff, err)
		}
		return
	}
	if dump, err := capture.Dump(n.t.Context(), ns); err != nil || dump != "" {
		n.t.Errorf("rules are left: %v\n%s", err, dump)
	}
}

// proxy records what a ztunnel is told.
type proxy struct {
	*journal
	mu   sync.Mutex
	pods map[string]uint64 // uid → namespace
}

func (p *proxy) Add(_ context.Context, w zds.Workload, ns *netns.NS) error {
	p.mu.Lock()
	p.pods[w.UID] = ns.Inode()
	p.mu.Unlock()
	ns.Close()
	p.add("add %s", w.UID)
	return nil
}

func (p *proxy) Keep(uid string) error { p.add("keep %s", uid); return nil }
func (p *proxy) Del(uid string) error  { p.add("del %s", uid); return nil }
func (p *proxy) SnapshotSent() error   { p.add("snapshot"); return nil }
func (p *proxy) Disconnected()         { p.add("disconnected") }

func (p *proxy) netns(uid string) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[uid]
}

func TestNodeHoldsAPodUntilItIsEnrolled(t *testing.T) {
	n := newNode(t)
	n.namespace("shop", "ambient")
	ns := n.pod("web", starting)
	n.start()
	added := make(chan error, 1)
	go func() { added <- n.add("web", ns) }()
	n.connect()
	n.proxy.await(t, "the pod", func(e []string) bool { return strings.Contains(strings.Join(e, " "), "add uid-web") })
	if err := <-added; err != nil {
		t.Fatal(err)
	}
	n.captured(ns, true)
	if got := n.proxy.netns("uid-web"); got != ns.Inode() {
		t.Errorf("the proxy was given namespace %d, want %d", got, ns.Inode())
	}
	n.annotated("web", "enabled")
}

func TestNodeRefusesWithoutAProxy(t *testing.T) {
	n := newNode(t)
	n.namespace("shop", "ambient")
	ns := n.pod("web", starting)
	n.admit = 200 * time.Millisecond
	n.start()
	err := n.add("web", ns)
	if err == nil || !strings.Contains(err.Error(), zds.ErrNoZtunnel.Error()) {
		t.Fatalf("ADD: %v", err)
	}
	n.captured(ns, false)
	n.annotated("web", "pending")
}

func TestNodeFollowsLabels(t *testing.T) {
	n := newNode(t)
	n.namespace("shop", "")
	ns := n.pod("web")
	n.start()
	n.connect()
	n.proxy.expect(t, "snapshot")
	n.captured(ns, false)
	n.namespace("shop", "ambient")
	n.proxy.expect(t, "add uid-web")
	n.captured(ns, true)
	n.namespace("shop", "")
	n.proxy.expect(t, "del uid-web")
	n.captured(ns, false)
	n.annotated("web", "")
}

func TestNodeTakesOver(t *testing.T) {
	n := newNode(t)
	n.namespace("shop", "ambient")
	web, cart := n.pod("web"), n.pod("cart")
	n.start()
	n.connect()
	enrolled := func(e []string) bool {
		s := strings.Join(e, " ")
		return strings.Contains(s, "add uid-web") && strings.Contains(s, "add uid-cart")
	}
	n.proxy.await(t, "both pods", enrolled)
	n.annotated("web", "enabled")
	n.annotated("cart", "enabled")
	n.stopped()
	n.captured(web, true)
	n.captured(cart, true)

	if err := capture.Remove(t.Context(), cart); err != nil {
		t.Fatal(err)
	}
	n.proxy.clear()
	n.start()
	n.proxy.await(t, "the snapshot", func(e []string) bool { return enrolled(e) && e[len(e)-1] == "snapshot" })
	n.captured(cart, true)
	n.annotated("web", "enabled")
	n.annotated("cart", "enabled")
}

func TestNodeRemovesWhatWasLeft(t *testing.T) {
	n := newNode(t)
	n.namespace("shop", "")
	ns := n.pod("web")
	if _, err := capture.Apply(t.Context(), ns, capture.NewPlan(capture.Options{IPv4: true, IPv6: true})); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.connect()
	n.proxy.expect(t, "snapshot")
	n.captured(ns, false)
	n.annotated("web", "")
}

// TestNodeAsOrdinaryUser runs the tests above in a user namespace too.
func TestNodeAsOrdinaryUser(t *testing.T) {
	nstest.AsOrdinaryUser(t, "^TestNode(Holds|Refuses|Follows|Takes|Removes)")
}
