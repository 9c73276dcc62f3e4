// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Memory reads a field of a process's status in bytes: VmRSS, VmHWM. process is its id, or "self".
func Memory(process, field string) (int64, error) {
	status, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		value, ok := strings.CutPrefix(line, field+":")
		if !ok {
			continue
		}
		words := strings.Fields(value)
		if len(words) == 0 {
			break
		}
		kib, err := strconv.ParseInt(words[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read memory: %s of process %s: %w", field, process, err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("read memory: process %s has no %s", process, field)
}
