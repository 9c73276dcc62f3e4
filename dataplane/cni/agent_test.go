// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

const ownNetns = "/proc/self/ns/net"

var enrolled = []string{"apply 2", "add uid-web shop/web/web", "annotate uid-web enabled"}

// post asks as the plugin does.
func post(t *testing.T, socket string, req any) (int, string) {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Post("http://agent"+ambient.AddPath, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func admitWeb() ambient.AddRequest {
	return ambient.AddRequest{Netns: ownNetns, PodNamespace: "shop", PodName: "web", UID: "uid-web"}
}

func TestRunningPodIsEnrolledAndReleasedByLabels(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", ""), pod("web"))
	start(t, f.config())
	f.set(namespace("shop", "ambient"))
	f.expect(t, enrolled...)
	f.set(namespace("shop", ""))
	f.expect(t, "remove", "del uid-web", "clear uid-web")
	f.set(pod("web", func(p *corev1.Pod) { p.Labels[mesh.LabelDataplaneMode] = "ambient" }))
	f.expect(t, enrolled...)
	f.set(namespace("shop", "ambient"), pod("web", func(p *corev1.Pod) { p.Labels[mesh.LabelDataplaneMode] = "none" }))
	f.expect(t, "remove", "del uid-web", "clear uid-web")
	f.expectNothing(t)
}

func TestEndedPodIsForgottenWithoutTouchingItsNamespace(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*fakes)
	}{
		{"object gone", func(f *fakes) { f.remove(pod("web")) }},
		{"succeeded", func(f *fakes) { f.set(pod("web", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })) }},
		{"failed", func(f *fakes) { f.set(pod("web", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })) }},
		{"name used again", func(f *fakes) { f.set(pod("web", starting, func(p *corev1.Pod) { p.UID = "uid-2" })) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakes()
			f.set(namespace("shop", "ambient"), pod("web"))
			a, _ := start(t, f.config())
			f.expect(t, enrolled...)
			tt.end(f)
			f.expect(t, "del uid-web", "clear uid-web")
			eventually(t, "the pod to be forgotten", func() bool { return len(a.Status().Pods) == 0 })
			f.expectNothing(t)
		})
	}
}

func TestPodsThatAreNeverEnrolled(t *testing.T) {
	for _, tt := range []struct {
		name string
		opt  func(*corev1.Pod)
	}{
		{"another node's", func(p *corev1.Pod) { p.Spec.NodeName = "node2" }},
		{"host network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }},
		{"sidecar", func(p *corev1.Pod) { p.Annotations[mesh.AnnotationSidecar] = "{}" }},
		{"excluded namespace", func(p *corev1.Pod) { p.Namespace = "kube-system" }},
		{"no address yet", starting},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakes()
			f.set(namespace("shop", "ambient"), namespace("kube-system", "ambient"), pod("other", tt.opt), pod("web"))
			start(t, f.config())
			f.expect(t, enrolled...)
			f.set(pod("other", tt.opt))
			f.remove(pod("web"))
			f.expect(t, "del uid-web", "clear uid-web")
			f.expectNothing(t)
		})
	}
}

func TestProxyAway(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web"))
	f.fail(&f.addErr, errAway)
	a, _ := start(t, f.config())
	f.expect(t, "apply 2", "add uid-web refused", "annotate uid-web pending", "add uid-web refused")
	if s := a.Snapshot(); len(s) != 1 || s[0].NS == nil {
		t.Errorf("a proxy that connects is not told of the pod: %v", s)
	}
	f.fail(&f.addErr, nil)
	f.await(t, "the annotation", func(e []string) bool { return slices.Contains(e, enrolled[2]) })
	f.await(t, "no second writing of rules", func(e []string) bool { return !slices.Contains(e, "apply 2") })
}

func TestRulesRefused(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web"))
	f.fail(&f.applyErr, errAway)
	a, _ := start(t, f.config())
	f.expect(t, "apply refused", "apply refused")
	if len(a.Snapshot()) > 0 {
		t.Error("a pod without rules is handed to the proxy")
	}
	f.fail(&f.applyErr, nil)
	f.await(t, "enrolment", func(e []string) bool { return slices.Contains(e, enrolled[2]) })
}

func TestAnnotationsChangeTheRules(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web"))
	a, _ := start(t, f.config())
	f.expect(t, enrolled...)
	f.set(pod("web", func(p *corev1.Pod) { p.Annotations[mesh.AnnotationDNSCapture] = "true" }))
	f.expect(t, "apply 3")
	f.set(pod("web", func(p *corev1.Pod) { p.Annotations[mesh.AnnotationBypass] = "true" }))
	f.expect(t, "apply 2")
	eventually(t, "the new rules in the status", func() bool {
		p := a.Status().Pods[0]
		return p.BypassInbound && !p.DNS && p.Served && p.Annotation == "enabled"
	})
	f.expectNothing(t)
}

func TestHostNamespaceIsNeverTouched(t *testing.T) {
	host, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web", starting))
	cfg := f.config()
	cfg.HostNetns = host
	_, socket := start(t, cfg)
	if code, body := post(t, socket, admitWeb()); code != 500 || !strings.Contains(body, "the node's own") {
		t.Errorf("%d %s", code, body)
	}
	f.expectNothing(t)
}

func TestAdmit(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web", starting))
	a, socket := start(t, f.config())
	if code, body := post(t, socket, admitWeb()); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	f.expect(t, enrolled...)
	f.set(pod("web"))
	f.remove(pod("web"))
	f.expect(t, "del uid-web", "clear uid-web")
	eventually(t, "the pod to be forgotten", func() bool { return len(a.Status().Pods) == 0 })
	f.expectNothing(t)
}

// Upstream's plugin names no uid, and encodes addresses in its own way.
func TestUpstreamsPluginIsUnderstood(t *testing.T) {
	golden, err := os.ReadFile("ambient/testdata/cmdadd.json")
	if err != nil {
		t.Fatal(err)
	}
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web", starting))
	_, socket := start(t, f.config())
	if code, body := post(t, socket, json.RawMessage(golden)); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	f.expect(t, enrolled...)
}

func TestAdmitUndoesWhatFailed(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web", starting))
	f.fail(&f.addErr, errAway)
	cfg := f.config()
	cfg.AdmitTimeout, cfg.BackoffMin, cfg.BackoffMax = 500*time.Millisecond, time.Hour, time.Hour // one try
	a, socket := start(t, cfg)
	if code, body := post(t, socket, admitWeb()); code != 500 || !strings.Contains(body, errAway.Error()) {
		t.Errorf("%d %s", code, body)
	}
	f.expect(t, "apply 2", "add uid-web refused", "annotate uid-web pending", "remove", "del uid-web")
	if len(a.Snapshot()) > 0 {
		t.Error("the pod is still handed to proxies")
	}
	f.fail(&f.addErr, nil)
	if code, body := post(t, socket, admitWeb()); code != 200 {
		t.Errorf("again: %d %s", code, body)
	}
	f.expect(t, enrolled...)
}

func TestAdmitWaitsForAProxy(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web", starting))
	f.fail(&f.addErr, errAway)
	_, socket := start(t, f.config())
	code := make(chan int, 1)
	go func() { c, _ := post(t, socket, admitWeb()); code <- c }()
	f.expect(t, "apply 2", "add uid-web refused", "annotate uid-web pending", "add uid-web refused")
	f.fail(&f.addErr, nil)
	if c := <-code; c != 200 {
		t.Error(c)
	}
}

// TestAdmitWaitsForTheRightPod holds that a pod of the same name that is being replaced is not taken for the new one.
func TestAdmitWaitsForTheRightPod(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", ""), pod("web", func(p *corev1.Pod) { p.UID = "uid-old" }))
	_, socket := start(t, f.config())
	code := make(chan int, 1)
	go func() { c, _ := post(t, socket, admitWeb()); code <- c }()
	f.set(namespace("shop", "ambient"), pod("web", starting))
	if c := <-code; c != 200 {
		t.Error(c)
	}
	f.await(t, "enrolment of the new pod", func(e []string) bool { return strings.Contains(strings.Join(e, "\n"), strings.Join(enrolled, "\n")) })
}

func TestAdmitRefuses(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), namespace("plain", ""), pod("far", func(p *corev1.Pod) { p.Spec.NodeName = "node2" }),
		pod("web", starting), pod("out", func(p *corev1.Pod) { p.Namespace = "plain" }))
	cfg := f.config()
	cfg.AdmitTimeout = cfg.BackoffMin
	_, socket := start(t, cfg)
	for _, tt := range []struct {
		name string
		req  any
		code int
		says string
	}{
		{"no JSON object", "hello", 400, ""},
		{"unknown pod", ambient.AddRequest{PodNamespace: "shop", PodName: "ghost"}, 500, "look up pod shop/ghost: it is not known"},
		{"another uid", ambient.AddRequest{PodNamespace: "shop", PodName: "web", UID: "uid-x"}, 500, "its uid is uid-web, the plugin means uid-x"},
		{"another node", ambient.AddRequest{PodNamespace: "shop", PodName: "far"}, 500, `it is on node "node2"`},
		{"no namespace", ambient.AddRequest{PodNamespace: "shop", PodName: "web", Netns: "/nowhere"}, 500, "no such file"},
		{"not a namespace", ambient.AddRequest{PodNamespace: "shop", PodName: "web", Netns: "/dev/null"}, 500, "enrol shop/web"},
		{"not in the mesh", ambient.AddRequest{PodNamespace: "plain", PodName: "out", Netns: "/nowhere"}, 200, ""},
	} {
		if code, body := post(t, socket, tt.req); code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s: %d %s", tt.name, code, body)
		}
	}
	f.expectNothing(t)
}

func TestTakeOver(t *testing.T) {
	web, gone, left := refOf(pod("web")), refOf(pod("gone")), refOf(pod("left"))
	opt := func(p *corev1.Pod) { p.Labels[mesh.LabelDataplaneMode] = "none" }
	for _, tt := range []struct {
		name  string
		setUp func(*fakes)
		want  []string
	}{
		{"nothing amiss", func(f *fakes) {}, []string{"diff", "snapshot uid-web true"}},
		{"rules damaged", func(f *fakes) { f.diff = []string{"a rule is missing"} }, []string{"diff", "apply 2", "snapshot uid-web true"}},
		{"namespace not found", func(f *fakes) { f.noNetns = true }, []string{"snapshot uid-web false"}},
		{"was pending", func(f *fakes) { f.recorded[web] = mesh.RedirectionPending }, []string{"diff"}},
		{"gone meanwhile", func(f *fakes) {
			delete(f.recorded, web)
			f.remove(pod("web"))
			f.recorded[gone] = mesh.RedirectionEnabled
		}, []string{"del uid-gone", "clear uid-gone"}},
		{"opted out meanwhile", func(f *fakes) {
			delete(f.recorded, web)
			f.remove(pod("web"))
			f.set(pod("left", opt))
			f.recorded[left] = mesh.RedirectionEnabled
		}, []string{"remove", "del uid-left", "clear uid-left"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakes()
			f.set(namespace("shop", "ambient"), pod("web"))
			f.recorded[web] = mesh.RedirectionEnabled
			tt.setUp(f)
			var a *Agent
			f.snapshot = func() []zds.Entry { return a.Snapshot() }
			a = New(f.config())
			l, err := ListenPlugin(t.Context(), t.TempDir()+"/s")
			if err != nil {
				t.Fatal(err)
			}
			run(t, a, l)
			f.expect(t, tt.want...)
			if tt.name == "was pending" { // the workers do this while the proxy is told
				f.await(t, "enrolment", func(e []string) bool {
					return slices.Contains(e, "snapshot uid-web true") && slices.Contains(e, enrolled[2])
				})
			}
		})
	}
}

// An agent ended after it had written rules and before it wrote that down, and the label went before the next one began.
func TestLeftRulesAreRemovedAtStart(t *testing.T) {
	f := newFakes()
	f.installed = true
	f.set(namespace("shop", ""), pod("web"), pod("host", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		pod("far", func(p *corev1.Pod) { p.Spec.NodeName = "node2" }), pod("over", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }))
	f.snapshot = func() []zds.Entry { f.add("snapshot"); return nil }
	start(t, f.config())
	f.expect(t, "remove", "snapshot")
	f.expectNothing(t)
}

func TestLeftRulesThatStayAreTriedAgain(t *testing.T) {
	f := newFakes()
	f.installed, f.removeErr = true, errAway
	f.set(namespace("shop", ""), pod("web"))
	start(t, f.config())
	f.expect(t, "remove", "annotate uid-web pending", "remove")
	f.fail(&f.removeErr, nil)
	f.await(t, "release", func(e []string) bool { return slices.Contains(e, "clear uid-web") })
}

func TestShutdownLeavesEverythingInPlace(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web"))
	a := New(f.config())
	l, err := ListenPlugin(t.Context(), t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, a, l)
	f.expect(t, enrolled...)
	stop()
	f.expectNothing(t)
}
