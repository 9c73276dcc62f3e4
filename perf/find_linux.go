// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ambientlab/ambientlab/perf/pod"
)

// findProcess finds a process that knows itself by another id, in a PID namespace of its own. Its clock is read from
// outside, for on a busy machine it would answer late.
func findProcess(id pod.Identity) (daemonProcess, error) {
	list, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range list {
		ns, err := os.Readlink(filepath.Join(dir, "ns", "pid"))
		if err != nil || ns != id.Namespace || innermost(dir) != id.PID {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		return daemonProcess(pid), err
	}
	return 0, fmt.Errorf("find process %d of %s: it is not to be seen here", id.PID, id.Namespace)
}

// innermost is a process's id in its own namespace (proc_pid_status(5), "NSpid"); 0 if it has ended.
func innermost(dir string) int {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if words := strings.Fields(ids); len(words) > 0 {
				pid, _ := strconv.Atoi(words[len(words)-1])
				return pid
			}
		}
	}
	return 0
}
