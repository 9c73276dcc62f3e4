// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"os/exec"
	"syscall"
)

// dieWithUs keeps a test binary that is killed from leaving a server behind.
func dieWithUs(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
