// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestMarkedProcessesAreKilled starts a process with a mark and a child of its, and one with another mark as a control.
func TestMarkedProcessesAreKilled(t *testing.T) {
	start := func(mark string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", "echo started; sleep 1000 & wait")
		cmd.Env = append(os.Environ(), markVariable+"="+mark)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	mark, other := "TestMarkedProcessesAreKilled", "TestMarkedProcessesAreKilledNot"
	victim, control := start(mark), start(other)
	if err := KillMarked(mark); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wait(); err == nil || victim.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", err)
	}
	if left, err := marked([]byte(markVariable + "=" + other)); err != nil || len(left) == 0 {
		t.Errorf("the control is gone too: %v, %v", left, err)
	}
	if err := KillMarked(other); err != nil {
		t.Fatal(err)
	}
	_ = control.Wait() // killed
}

func TestUnderSaysWhatCouldNotBeStarted(t *testing.T) {
	for command, errno := range map[string]syscall.Errno{
		"no-such-thing": syscall.ENOENT, "/no/such/thing": syscall.ENOENT, "/etc/passwd": syscall.EACCES, "/etc": syscall.EACCES,
	} {
		var errOut bytes.Buffer
		if err := Under("MARK", []string{command}, &errOut); err == nil {
			t.Errorf("%s was started", command)
		}
		text, ok := strings.CutPrefix(errOut.String(), Refusal("MARK"))
		if !ok || strings.TrimSpace(text) != strconv.Itoa(int(errno)) {
			t.Errorf("%s: %q, want %d", command, errOut.String(), errno)
		}
	}
}

func TestDirectIsWhatUnderBecomes(t *testing.T) {
	cmd := Direct(t.Context(), []string{"workload", UnderCommand, "MARK", "sh", "-c", "echo $0 $" + markVariable, "x"})
	if cmd == nil {
		t.Fatal("no command")
	}
	if out, err := cmd.Output(); err != nil || string(out) != "x MARK\n" {
		t.Errorf("%q, %v", out, err)
	}
	for _, argv := range [][]string{{"sh"}, {"workload", UnderCommand, "MARK"}, {"workload", KillCommand, "MARK", "sh"}, {"workload", UnderCommand, "MARK", "/no/such/thing"}, {"other", UnderCommand, "MARK", "sh"}} {
		if cmd := Direct(t.Context(), argv); cmd != nil {
			t.Errorf("%q: %v", argv, cmd)
		}
	}
}
