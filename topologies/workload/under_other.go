// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package workload

import (
	"errors"
	"io"
)

// Under needs execve.
func Under(string, []string, io.Writer) error { return errors.ErrUnsupported }

// Elsewhere needs namespaces.
func Elsewhere(string, []string) error { return errors.ErrUnsupported }

// KillMarked needs /proc.
func KillMarked(string) error { return errors.ErrUnsupported }
