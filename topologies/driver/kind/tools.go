// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// DefaultImage is the node image that `make node-image` leaves.
const DefaultImage = "ambientlab/node:current"

// tools are the programs that this package runs.
type tools struct {
	bin    string // the project's binaries
	kind   string
	docker string
}

// findTools says all that is missing, and how to get it.
func findTools(ctx context.Context, bin string) (tools, error) {
	t, err := locateTools(bin)
	errs := []error{err}
	if _, err := t.run(ctx, nil, t.docker, "info", "--format", "{{.ServerVersion}}"); err != nil {
		errs = append(errs, fmt.Errorf("no Docker daemon answers: run `make docker`, or set DOCKER_HOST: %w", err))
	}
	return t, errors.Join(errs...)
}

// locateTools does not ask whether a daemon answers.
func locateTools(bin string) (tools, error) {
	t := tools{bin: bin, kind: filepath.Join(bin, "tools", "kind"), docker: "docker"}
	if _, err := os.Stat(t.kind); err == nil {
		return t, nil
	}
	path, err := exec.LookPath("kind")
	if err != nil {
		return t, fmt.Errorf("no kind command: run `make kind`, which builds %s", t.kind)
	}
	t.kind = path
	return t, nil
}

// patience is how long a program may take to end once it was asked to.
const patience = 5 * time.Second

// run runs a program to its end and returns its standard output. Its standard error is part of the error. When ctx ends, the
// program and those that it started are interrupted. They do not get what a terminal sends: the end of a cluster must not be
// cut short by a second Ctrl-C.
func (t tools) run(ctx context.Context, stdin *bytes.Reader, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = patience
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("%s %s: %w%s", filepath.Base(argv[0]), argv[1], err, tail(said.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// tail is the end of what a program said, for an error.
func tail(said string) string {
	const lines = 15
	all := strings.Split(strings.TrimSpace(said), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	if text := strings.Join(all, "\n"); text != "" {
		return ": " + text
	}
	return ""
}

// Exec runs argv in a node's container, which is what a machine is to its cluster. When ctx ends, the command's standard input
// ends and docker is stopped; a command that heeds neither goes on in the node.
func (t tools) Exec(ctx context.Context, node string, argv []string, stdio lab.Stdio) (int, error) {
	args := []string{"exec"}
	if stdio.In != nil {
		args = append(args, "-i")
	}
	cmd := exec.CommandContext(ctx, t.docker, append(append(args, node), argv...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.In, stdio.Out, stdio.Err
	cmd.WaitDelay = patience
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && ctx.Err() == nil && exit.ExitCode() >= 0 {
		return exit.ExitCode(), nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("run %s on node %s: %w", argv[0], node, err)
	}
	return 0, nil
}

// output runs argv in a node's container and returns what it printed.
func (t tools) output(ctx context.Context, node string, argv ...string) (string, error) {
	return t.outputOf(ctx, node, nil, argv...)
}

// outputOf is output of a program with something to read, or nil.
func (t tools) outputOf(ctx context.Context, node string, in io.Reader, argv ...string) (string, error) {
	var out, said bytes.Buffer
	exit, err := t.Exec(ctx, node, argv, lab.Stdio{In: in, Out: &out, Err: &said})
	if err == nil && exit != 0 {
		err = fmt.Errorf("run %s on node %s: exit code %d%s", strings.Join(argv, " "), node, exit, tail(said.String()))
	}
	return strings.TrimSpace(out.String()), err
}
