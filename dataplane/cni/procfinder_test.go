// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	uidA = "0a1b2c3d-1111-2222-3333-444455556666"
	uidB = "ffffeeee-aaaa-bbbb-cccc-0123456789ab"
)

func TestPodOf(t *testing.T) {
	under := strings.ReplaceAll(uidA, "-", "_")
	hash := strings.ReplaceAll(uidB, "-", "")
	for name, tt := range map[string]struct{ cgroup, want string }{
		"v1 cgroupfs":           {"12:pids:/kubepods/burstable/pod" + uidA + "/deadbeef\n1:name=systemd:/kubepods/burstable/pod" + uidA + "/deadbeef\n", uidA},
		"v1 some controllers":   {"13:rdma:/\n12:cpu:/kubepods/pod" + uidA + "/c\n", uidA},
		"v1 systemd":            {"2:cpu:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/cri-containerd-aa.scope\n", uidA},
		"v2 cgroupfs":           {"0::/kubepods/besteffort/pod" + uidA + "/aa\n", uidA},
		"v2 systemd containerd": {"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-aa.scope\n", uidA},
		"v2 systemd cri-o":      {"0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-aa.scope/container\n", uidA},
		"v2 guaranteed":         {"0::/kubepods.slice/kubepods-pod" + under + ".slice\n", uidA},
		"kind":                  {"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + under + ".slice/cri-containerd-aa.scope\n", uidA},
		"from another root":     {"0::/../../kubelet-kubepods-pod" + under + ".slice/cri-containerd-aa.scope\n", uidA},
		"containerd, colons":    {"0::/kubepods-besteffort-pod" + under + ".slice:cri-containerd:aa\n", ""},
		"static":                {"0::/kubepods/burstable/pod" + hash + "/aa\n", hash},
		"node in a pod":         {"0::/kubepods/burstable/pod" + uidB + "/aa/kubelet/kubepods/pod" + uidA + "/bb\n", uidA},
		"no pod":                {"0::/system.slice/podman.service\n", ""},
		"a pod's name only":     {"0::/system.slice/podinfo\n", ""},
		"too short":             {"0::/kubepods/pod0a1b2c3d/aa\n", ""},
		"a longer name":         {"0::/kubepods/pod" + uidA + "x/aa\n", ""},
		"empty":                 {"", ""},
		"nonsense":              {"kubepods/pod" + uidA, ""},
	} {
		if got := podOf(tt.cgroup); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// tree is a /proc of files: namespaces are hard links, which have an inode in common.
type tree struct {
	t   *testing.T
	dir string
}

func newTree(t *testing.T) tree {
	t.Helper()
	tr := tree{t, t.TempDir()}
	tr.process(1, 1, "host", "0::/init.scope")
	must(t, os.Mkdir(filepath.Join(tr.dir, "sys"), 0o755))
	return tr
}

func (tr tree) process(pid, started int, namespace, cgroup string) {
	tr.t.Helper()
	dir := filepath.Join(tr.dir, strconv.Itoa(pid))
	must(tr.t, os.MkdirAll(filepath.Join(dir, "ns"), 0o755))
	stat := fmt.Sprintf("%d (a (b) c) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 %d 1 1 1", pid, started)
	must(tr.t, os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644), os.WriteFile(filepath.Join(dir, "cgroup"), []byte(cgroup+"\n"), 0o644))
	if namespace == "" {
		return // it is about to end
	}
	ns := filepath.Join(tr.dir, "net."+namespace)
	must(tr.t, os.WriteFile(ns, nil, 0o644), os.Link(ns, filepath.Join(dir, "ns/net")))
}

func in(uid string) string { return "0::/kubepods/besteffort/pod" + uid + "/c" }

func TestTheNamespaceOfAPod(t *testing.T) {
	for name, tt := range map[string]struct {
		build func(tree)
		want  map[string]int // pid by uid; 0: none
	}{
		"two pods": {func(tr tree) {
			tr.process(10, 100, "a", in(uidA))
			tr.process(11, 110, "a", in(uidA))
			tr.process(20, 200, "b", in(uidB))
		}, map[string]int{uidA: 10, uidB: 20}},
		"the sandbox has the higher number": {func(tr tree) {
			tr.process(11, 100, "a", in(uidA))
			tr.process(10, 110, "a", in(uidA))
		}, map[string]int{uidA: 11}},
		"a process made a namespace of its own": {func(tr tree) {
			tr.process(10, 100, "a", in(uidA))
			tr.process(11, 110, "inner", in(uidA))
		}, map[string]int{uidA: 10}},
		"a process of a entered b": {func(tr tree) {
			tr.process(10, 100, "a", in(uidA))
			tr.process(20, 200, "b", in(uidB))
			tr.process(30, 300, "b", in(uidA))
		}, map[string]int{uidA: 10, uidB: 20}},
		"only a process that entered b is left of a": {func(tr tree) {
			tr.process(20, 200, "b", in(uidB))
			tr.process(30, 300, "b", in(uidA))
		}, map[string]int{uidA: 0, uidB: 20}},
		"a third process, in no pod": {func(tr tree) {
			tr.process(5, 50, "a", "0::/user.slice")
			tr.process(10, 100, "a", in(uidA))
		}, map[string]int{uidA: 10}},
		"host network": {func(tr tree) {
			tr.process(10, 100, "host", in(uidA))
		}, map[string]int{uidA: 0}},
		"a process that looks into the host's": {func(tr tree) {
			tr.process(9, 90, "host", in(uidA))
			tr.process(10, 100, "a", in(uidA))
		}, map[string]int{uidA: 10}},
		"a process that ends": {func(tr tree) {
			tr.process(9, 90, "", in(uidA))
			tr.process(10, 100, "a", in(uidA))
		}, map[string]int{uidA: 10}},
		"nobody": {func(tree) {}, map[string]int{uidA: 0}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			tt.build(tr)
			for uid, want := range tt.want {
				p, err := NewProcFinder(tr.dir).locate(uid, time.Now())
				if p.pid != want || (want == 0) != errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: process %d, %v; want %d", uid, p.pid, err, want)
				}
			}
		})
	}
}

func TestALookServesForAMoment(t *testing.T) {
	tr := newTree(t)
	f, now := NewProcFinder(tr.dir), time.Now()
	locate := func(after time.Duration, want int) {
		t.Helper()
		if p, _ := f.locate(uidA, now.Add(after)); p.pid != want {
			t.Errorf("after %s: process %d, want %d", after, p.pid, want)
		}
	}
	locate(0, 0)
	tr.process(10, 100, "a", in(uidA))
	locate(scanKeepsNone/2, 0)
	locate(scanKeepsNone*2, 10)
	must(t, os.RemoveAll(filepath.Join(tr.dir, "10")))
	locate(scanKeeps, 10)
	locate(scanKeeps*2, 0)
}

func TestWithoutTheHostsProc(t *testing.T) {
	_, err := NewProcFinder(t.TempDir()).Find(uidA)
	if err == nil || !strings.Contains(err.Error(), "is the host's /proc mounted at") {
		t.Error(err)
	}
}
