// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

// sleeper starts a process in a namespace and returns its number.
func sleeper(t *testing.T, ns *netns.NS) int {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	nstest.In(t, ns, cmd.Start)
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// realTree is a /proc in which processes are real but for the cgroups that they are in.
func realTree(t *testing.T, cgroups map[int]string) string {
	t.Helper()
	dir := t.TempDir()
	cgroups[1] = "0::/"
	for pid, cgroup := range cgroups {
		real, here := fmt.Sprintf("/proc/%d", pid), filepath.Join(dir, strconv.Itoa(pid))
		if pid == 1 {
			real = "/proc/self" // the host here is the namespace of the tests
		}
		must(t, os.Mkdir(here, 0o755), os.Symlink(real+"/ns", filepath.Join(here, "ns")), os.Symlink(real+"/stat", filepath.Join(here, "stat")),
			os.WriteFile(filepath.Join(here, "cgroup"), []byte(cgroup+"\n"), 0o644))
	}
	return dir
}

func TestRealNamespacesAreFound(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	host, err := netns.Current()
	must(t, err)
	defer host.Close()
	first, second, stray, hostly := sleeper(t, a), sleeper(t, b), sleeper(t, b), sleeper(t, host)
	const uidHost = "99999999-1111-2222-3333-444455556666"
	f := NewProcFinder(realTree(t, map[int]string{first: in(uidA), second: in(uidB), stray: in(uidA), hostly: in(uidHost)}))
	for uid, want := range map[string]*netns.NS{uidA: a, uidB: b} {
		ns, err := f.Find(uid)
		if err != nil {
			t.Fatal(err)
		}
		if !ns.Same(want) {
			t.Errorf("%s: %s, want %s", uid, ns, want)
		}
		ns.Close()
	}
	if ns, err := f.Find(uidHost); err == nil {
		t.Errorf("the host's own: %s", ns)
	}
}

// A process that ended between a look and its use must not be followed to whoever has its number now.
func TestAProcessThatChangedIsNotFollowed(t *testing.T) {
	ns := nstest.New(t)
	pid := sleeper(t, ns)
	f := NewProcFinder(realTree(t, map[int]string{pid: in(uidA)}))
	opened, err := f.Find(uidA)
	must(t, err)
	opened.Close()
	for _, change := range []func(*process){
		func(p *process) { p.started++ },
		func(p *process) { p.ns.number++ },
		func(p *process) { p.uid = uidB },
	} {
		p := f.found[uidA]
		change(&p)
		if ns, err := f.open(p); err == nil {
			t.Errorf("opened %s by %+v", ns, p)
		}
	}
}

// The runtime names a namespace as the host sees it: /var/run is a link to /run there, and here is neither.
func TestAPathOfTheHostIsOpened(t *testing.T) {
	ns := nstest.New(t)
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "run/netns"), 0o755), os.Mkdir(filepath.Join(root, "var"), 0o755),
		os.Symlink("/run", filepath.Join(root, "var/run")), os.WriteFile(filepath.Join(root, "run/netns/cni-1"), nil, 0o644),
		os.WriteFile(filepath.Join(root, "run/netns/file"), nil, 0o644))
	at := filepath.Join(root, "run/netns/cni-1")
	must(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), at, "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) }()
	for path, ok := range map[string]bool{
		"/var/run/netns/cni-1": true, "/run/netns/cni-1": true, "/run/../../run/netns/cni-1": true,
		fmt.Sprintf("/proc/self/fd/%d", ns.Fd()): true, "/run/netns/file": false, "/run/netns/none": false, at: false,
	} {
		got, err := netns.OpenUnder(root, "/proc", path)
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
		if err == nil && !got.Same(ns) {
			t.Errorf("%s: %s", path, got)
		}
		got.Close()
	}
}
