// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package workload

import (
	"context"
	"errors"
	"io"
	"os/exec"
)

// Under needs execve.
func Under(string, []string, io.Writer) error { return errors.ErrUnsupported }

// Direct has no command.
func Direct(context.Context, []string) *exec.Cmd { return nil }

// Elsewhere needs namespaces.
func Elsewhere(string, []string) error { return errors.ErrUnsupported }

// KillMarked needs /proc.
func KillMarked(string) error { return errors.ErrUnsupported }
