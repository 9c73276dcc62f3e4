// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// gcPercent fits a process whose footprint every pod of the node pays for: its heap is a few MB that hardly change, so
// collecting more often costs little and halves what lies about in between.
const gcPercent = 50

// giveBack returns to the system what an idle process does not need.
func giveBack() {
	runtime.GC() // with the next one, empties the pools of buffers
	debug.FreeOSMemory()
	if maps, err := os.Open("/proc/self/maps"); err == nil {
		defer maps.Close()
		unmapCode(maps)
	}
}

// unmapCode drops the binary's own clean pages from the process: its start runs through nearly all of them once, and the
// kernel maps the neighbours of each page that is touched. What is needed comes back from the page cache, without I/O.
func unmapCode(maps *os.File) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uintptr
		var perms string
		// A line is "from-to perms offset device inode path".
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &perms); err != nil {
			continue
		}
		// Only what cannot have been written to: a page that was would lose its contents.
		if !strings.Contains(perms, "w") && strings.HasSuffix(lines.Text(), " "+exe) {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
