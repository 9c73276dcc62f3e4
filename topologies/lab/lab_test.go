// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

func TestCall(t *testing.T) {
	l, f := newFake(t)
	from := PodRef{"shop", "web"}
	var got []string
	f.exec = func(argv []string, stdio Stdio) (int, error) {
		got = argv
		_, err := io.WriteString(stdio.Out, `{"ok":0,"failed":1,"calls":[{"class":"refused"}]}`)
		return 1, err
	}
	res, err := l.Call(t.Context(), from, "http://cart", workload.Options{Count: 2})
	if err != nil || res.Failed != 1 || res.First().Class != workload.ClassRefused {
		t.Errorf("a failed call: %+v, %v", res, err)
	}
	if diff := cmp.Diff([]string{"workload", "call", "--count", "2", "http://cart"}, got); diff != "" {
		t.Errorf("argv (-want +got):\n%s", diff)
	}
	f.exec = func(_ []string, stdio Stdio) (int, error) {
		_, err := io.WriteString(stdio.Err, "usage\n")
		return 2, err
	}
	var exec *ExecError
	if _, err := l.Call(t.Context(), from, "http://cart", workload.Options{}); !errors.As(err, &exec) || exec.Exit != 2 || exec.Stderr != "usage" {
		t.Errorf("bad usage: %v", err)
	}
	f.exec = func([]string, Stdio) (int, error) { return 0, errFake }
	if _, err := l.Call(t.Context(), from, "http://cart", workload.Options{}); !errors.Is(err, errFake) {
		t.Errorf("a pod that cannot exec: %v", err)
	}
	f.exec = func(_ []string, stdio Stdio) (int, error) {
		_, err := io.WriteString(stdio.Out, "no JSON")
		return 0, err
	}
	if _, err := l.Call(t.Context(), from, "http://cart", workload.Options{}); err == nil {
		t.Error("a result that is no JSON was taken")
	}
}

func TestFind(t *testing.T) {
	l, _ := newFake(t)
	for in, want := range map[string]string{
		"cart": "shop/cart", "shop/web": "shop/web", "test/web": "test/web", "web": "", "none": "", "shop/batch": "",
	} {
		ref, err := ParsePodRef(in)
		if err != nil {
			t.Fatal(err)
		}
		p, err := l.Find(t.Context(), ref)
		if (err == nil) != (want != "") || (err == nil && p.String() != want) {
			t.Errorf("Find(%s) = %s, %v; want %s", in, p.PodRef, err, want)
		}
		if in == "web" && !strings.Contains(err.Error(), "shop/web, test/web") {
			t.Errorf("Find(web): %v, want both named", err)
		}
	}
	for _, bad := range []string{"", "/x", "a/", "a/b/c"} {
		if ref, err := ParsePodRef(bad); err == nil {
			t.Errorf("ParsePodRef(%q) = %v", bad, ref)
		}
	}
}

func TestAwaitPod(t *testing.T) {
	l, f := newFake(t)
	enrolled := func(p PodInfo) bool { return p.Enrolled }
	if p, err := l.AwaitPod(t.Context(), PodRef{"shop", "cart"}, "enrolled", enrolled); err != nil || p.Name != "cart" {
		t.Errorf("%v, %v", p, err)
	}
	f.pods[0].Problem = "the agent refused"
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := l.AwaitPod(ctx, PodRef{"plain", "batch"}, "enrolled", enrolled)
	if want := "pod plain/batch is not enrolled: the agent refused"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if _, err := l.AwaitPod(ctx, PodRef{"plain", "legacy"}, "enrolled", enrolled); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline", err)
	}
}

func TestCapabilities(t *testing.T) {
	cs := Capabilities{CapIPv4: "", CapIPv6: "the topology is ipv4", CapCapture: ""}
	if !cs.Has(CapIPv4) || cs.Has(CapIPv6) || cs.Has(CapLink) {
		t.Error("Has is wrong")
	}
	want := []string{"ipv6: the topology is ipv4", "link: this driver does not have it"}
	if diff := cmp.Diff(want, cs.Missing(CapIPv4, CapIPv6, CapLink)); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Capability{CapCapture, CapIPv4}, cs.List()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

// The topology renders a command line that the workload binary reads back to the same ports. The two packages do not
// import each other; this one sees both.
func TestServeArgsAreTheWorkloadBinarys(t *testing.T) {
	serve := topologies.DefaultServe()
	cfg, err := workload.ParseServe(serve.Args()[1:], io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range serve.Listeners() {
		var want []workload.Port
		for _, p := range l.Ports {
			want = append(want, workload.Port{Number: p.Number, Bind: workload.Bind(p.Bind)})
		}
		if !slices.Equal(want, cfg.Ports[l.Flag]) {
			t.Errorf("%s: %v, want %v", l.Flag, cfg.Ports[l.Flag], want)
		}
	}
}
