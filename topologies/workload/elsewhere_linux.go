// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Elsewhere becomes the command in the network namespace at a path, or in a new one if it is NewNamespace, and in every other
// respect stays where it is. It needs CAP_SYS_ADMIN, and for another process's namespace CAP_SYS_PTRACE. It returns only if that
// fails.
func Elsewhere(path string, argv []string) error {
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the thread that moves is the process once it becomes the command
	if err := move(path); err != nil {
		return fmt.Errorf("leave the pod's network namespace for %s: %w", path, err)
	}
	return fmt.Errorf("start %s: %w", argv[0], syscall.Exec(program, argv, os.Environ()))
}

func move(path string) error {
	if path == NewNamespace {
		return unix.Unshare(unix.CLONE_NEWNET)
	}
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
}
