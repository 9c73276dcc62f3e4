// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// lookAgain is between two looks at whether processes have ended.
const lookAgain = 5 * time.Millisecond

// Under becomes the command, whose environment has a mark, so that KillMarked finds it and all that it starts. It returns only
// if the command cannot be started: stderr then has Refusal and the error number.
func Under(mark string, argv []string, stderr io.Writer) error {
	path, err := exec.LookPath(argv[0])
	if err == nil || errors.Is(err, exec.ErrDot) {
		err = syscall.Exec(path, argv, append(os.Environ(), markVariable+"="+mark))
	}
	errno := syscall.ENOENT
	if !errors.As(err, &errno) && errors.Is(err, os.ErrPermission) {
		errno = syscall.EACCES
	}
	if info, statErr := os.Stat(argv[0]); statErr == nil && info.IsDir() {
		errno = syscall.EACCES
	}
	_, _ = fmt.Fprintln(stderr, Refusal(mark)+strconv.Itoa(int(errno)))
	return fmt.Errorf("start %s: %w", argv[0], errno)
}

// Direct is the command that `workload under` would become, with its mark; nil for other commands, and for one that is not found: of
// that the other tells.
func Direct(ctx context.Context, argv []string) *exec.Cmd {
	if len(argv) < 4 || argv[0] != "workload" || argv[1] != UnderCommand {
		return nil
	}
	path, err := exec.LookPath(argv[3])
	if err != nil {
		return nil
	}
	cmd := exec.CommandContext(ctx, path, argv[4:]...)
	cmd.Args[0], cmd.Env = argv[3], append(os.Environ(), markVariable+"="+argv[2])
	return cmd
}

// KillMarked kills every process of the pod that has a mark, and returns when none is left.
func KillMarked(mark string) error {
	want := []byte(markVariable + "=" + mark)
	for {
		left, err := marked(want)
		if err != nil || len(left) == 0 {
			return err
		}
		for _, pid := range left {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		time.Sleep(lookAgain)
	}
}

// marked are the processes that have a variable. One that has ended has none.
func marked(want []byte) ([]int, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range paths {
		env, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile, or is another user's
		}
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if bytes.Equal(v, want) {
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				if err != nil {
					return nil, err
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}
