// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(5*time.Millisecond, 20*time.Millisecond)
		defer q.close()
		q.add("a")
		q.add("a")
		q.add("b")
		first, _ := q.get(t.Context())
		second, _ := q.get(t.Context())
		if first != "a" || second != "b" {
			t.Fatalf("%q, %q", first, second)
		}
		q.add("a") // while it is worked on
		q.done("b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if k, ok := q.get(ctx); ok {
			t.Fatalf("%q is given out twice at a time", k)
		}
		q.done("a")
		if k, _ := q.get(t.Context()); k != "a" {
			t.Fatalf("%q", k)
		}
		q.done("a")

		var waits []time.Duration
		for range 4 {
			start := time.Now()
			q.retry("c")
			k, _ := q.get(t.Context())
			q.done(k)
			waits = append(waits, time.Since(start))
		}
		q.forget("c")
		waits = append(waits, q.retry("c"))
		if want := []time.Duration{5e6, 10e6, 20e6, 20e6, 5e6}; !slices.Equal(waits, want) {
			t.Errorf("waits %v, want %v", waits, want)
		}
	})
}

func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l locks
		release, err := l.take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.take(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.take(ctx, "a"); err == nil {
			t.Error("two have the lock")
		}
		got := make(chan func(), 1)
		go func() {
			r, _ := l.take(t.Context(), "a")
			got <- r
		}()
		synctest.Wait()
		release()
		(<-got)()
		if len(l.m) > 0 {
			t.Errorf("%d locks are kept", len(l.m))
		}
	})
}

func TestStatusDir(t *testing.T) {
	objects := t.TempDir()
	dir := filepath.Join(objects, "status", "cni-agent.node1")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(objects, "pod.shop.web.yaml"),
		"apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: u1}\nspec: {containers: [{name: c, image: i}]}\n")
	d, err := NewStatusDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	annotation := func() string {
		t.Helper()
		o, problems, err := file.Read(objects)
		if err != nil || len(problems) > 0 {
			t.Fatal(err, problems)
		}
		return o.Pods["shop/web"].Annotations["ambient.istio.io/redirection"]
	}
	u1, u2 := PodRef{"shop", "web", "u1"}, PodRef{"shop", "web", "u2"}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(d.Set(u1, "pending"))
	if got := annotation(); got != "pending" {
		t.Errorf("annotation %q", got)
	}
	must(d.Set(u1, "enabled"))
	if got := annotation(); got != "enabled" {
		t.Errorf("annotation %q", got)
	}
	write(filepath.Join(dir, "pod.shop.bad.yaml"), "{")
	again, err := NewStatusDir(dir)
	must(err)
	if diff := cmp.Diff(map[PodRef]string{u1: "enabled"}, again.Recorded()); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	must(again.Set(u2, "enabled"))
	must(again.Clear(u1)) // a newer pod of that name has taken over
	if got := annotation(); got != "" {
		t.Errorf("the old pod has the new one's annotation %q", got)
	}
	if len(again.Recorded()) != 1 {
		t.Errorf("recorded %v", again.Recorded())
	}
	must(again.Clear(u2))
	must(again.Clear(u2))
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
}

func TestNetnsDir(t *testing.T) {
	d := NetnsDir(t.TempDir())
	for name, content := range map[string]string{"good": "/proc/self/ns/net\n", "bad": "/dev/null"} {
		if err := os.WriteFile(filepath.Join(string(d), name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ns, err := d.Find("good")
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	for _, uid := range []string{"bad", "ghost", "", "../good", ".hidden"} {
		if ns, err := d.Find(uid); err == nil {
			ns.Close()
			t.Errorf("%q was found", uid)
		}
	}
}

func TestListenPlugin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "plugin.sock")
	for range 2 { // the second replaces the first one's leftover
		l, err := ListenPlugin(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
	other := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(other, []byte("keep"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenPlugin(t.Context(), other); err == nil {
		t.Error("a file was replaced by a socket")
	}
}

var _ source.Source = fakeSource{}
