// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// elsewhereArg has the test binary, in a user namespace of its own, become a command that says where it is.
const elsewhereArg = "AMBIENTLAB_TEST_ELSEWHERE"

func TestElsewhere(t *testing.T) {
	if path := os.Getenv(elsewhereArg); path != "" {
		t.Fatal(Elsewhere(path, []string{"readlink", "/proc/self/ns/net"}))
	}
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for path, same := range map[string]bool{NewNamespace: false, "/proc/thread-self/ns/net": true} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestElsewhere$")
		cmd.Env = append(os.Environ(), elsewhereArg+"="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		if same { // the caller's own namespace belongs to the host's user namespace
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", path, err, out)
		}
		if there := strings.TrimSpace(string(out)); there == here || !strings.HasPrefix(there, "net:[") {
			t.Errorf("%s: it is in %s, and its parent in %s", path, there, here)
		}
	}
	if err := Elsewhere("/nowhere", []string{"true"}); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a path that is not there: %v", err)
	}
}
