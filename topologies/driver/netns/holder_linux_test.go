// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
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

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

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

func TestOnlyThisUsersHolderIsTrusted(t *testing.T) {
	for uid, ok := range map[uint32]bool{0: true, uint32(os.Geteuid()): true, uint32(os.Geteuid()) + 1: false} {
		if err := trustedUID(uid); (err == nil) != ok {
			t.Errorf("user %d: %v", uid, err)
		}
	}
}
