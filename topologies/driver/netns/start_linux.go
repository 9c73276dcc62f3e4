// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/driver/programs"
)

// Binaries that a lab runs, relative to the directory that holds them.
var binaries = []string{
	"lab", "pause", "workload", "capture", "ztunnel", "control", "cni-agent", "ambient-cni", "cni/ptp", "cni/host-local",
}

// FindBinaries returns the directory of the project's binaries: bin if it is set, else $AMBIENTLAB_BIN, else where this
// program is. It fails with a *programs.MissingError if one is missing.
func FindBinaries(bin string) (string, error) { return programs.Find(bin, binaries...) }

// holderProcess is a holder that this process started.
type holderProcess struct {
	cmd      *exec.Cmd
	lifeline *os.File // nil if detached; the lab ends when its last copy is closed
	ended    chan struct{}
}

// startHolder starts `lab hold` for dir and returns once it listens. With detach, the lab outlives this process.
func startHolder(ctx context.Context, dir labdir.Dir, bin string, detach bool) (*holderProcess, error) {
	lifelineR, lifelineW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer lifelineR.Close()
	helloR, helloW, err := os.Pipe()
	if err != nil {
		lifelineW.Close()
		return nil, err
	}
	defer helloR.Close()
	// What this process was left by its own parent, such as a lock that a script holds, is not the lab's to keep for as long as it stands.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return nil, fmt.Errorf("start holder: %w", err)
	}
	cmd := holderCommand(dir, bin, detach)
	cmd.ExtraFiles = []*os.File{lifelineR, helloW}
	err = cmd.Start()
	helloW.Close()
	if err != nil {
		lifelineW.Close()
		return nil, refusedClone(err)
	}
	h := &holderProcess{cmd: cmd, lifeline: lifelineW, ended: make(chan struct{})}
	go func() { // ends with the holder, which stop ends; detached, with this process
		_ = cmd.Wait()
		close(h.ended)
	}()
	if err := readHello(ctx, helloR, dir); err != nil {
		h.stop()
		return nil, err
	}
	return h, nil
}

// detach lets a lab that is up outlast this process.
func (h *holderProcess) detach() {
	h.lifeline.Close()
	h.lifeline = nil
}

func holderCommand(dir labdir.Dir, bin string, detach bool) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "lab"), "hold", "--dir", string(dir), "--bin", bin)
	if detach {
		cmd.Args = append(cmd.Args, "--detach")
	}
	// A session of its own: Ctrl-C is for whoever runs the lab, who then takes it down in order.
	attr := &syscall.SysProcAttr{Setsid: true}
	attr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	if !mayMakeNamespaces() {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	cmd.Dir = "/"
	return cmd
}

// mayMakeNamespaces reports whether this process needs no user namespace to make others. Root in a container often does.
func mayMakeNamespaces() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.Geteuid() == 0
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	return os.Geteuid() == 0 && data[0].Effective&need == need
}

// readHello waits for the holder's first words.
func readHello(ctx context.Context, r *os.File, dir labdir.Dir) error {
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	var hello order.Hello
	err := json.NewDecoder(r).Decode(&hello)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("start lab %s: its holder ended without a word: see %s", dir.Name(), dir.Log("hold"))
	case hello.Taken:
		return fmt.Errorf("start lab %s: %w: take it down with `lab down %s`, or choose another --name",
			dir.Name(), labdir.ErrTaken, dir.Name())
	case hello.Error != "":
		return fmt.Errorf("start lab %s: %s", dir.Name(), hello.Error)
	}
	return nil
}

// stop ends the holder by letting go of the pipe, and waits.
func (h *holderProcess) stop() {
	if h.lifeline != nil {
		h.lifeline.Close()
		h.lifeline = nil
	} else {
		_ = h.cmd.Process.Kill()
	}
	<-h.ended
}

// refusedClone says which of the host's settings keeps an ordinary user from making namespaces.
func refusedClone(err error) error {
	for _, s := range []struct{ path, bad, cure string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"},
		{"/proc/sys/user/max_net_namespaces", "0", "sysctl user.max_net_namespaces=10000"},
		{"/proc/sys/user/max_mnt_namespaces", "0", "sysctl user.max_mnt_namespaces=10000"},
		{"/proc/sys/user/max_pid_namespaces", "0", "sysctl user.max_pid_namespaces=10000"},
	} {
		if value, readErr := os.ReadFile(s.path); readErr == nil && strings.TrimSpace(string(value)) == s.bad {
			return fmt.Errorf("make namespaces: %w: %s is %s: allow them with `%s`, or run as root", err, s.path, s.bad, s.cure)
		}
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) {
		return fmt.Errorf("make namespaces: %w: a seccomp profile or a missing capability refuses: in a container, run it with "+
			"--security-opt seccomp=unconfined (an ordinary user) or --privileged (root)", err)
	}
	return fmt.Errorf("start holder: %w", err)
}
