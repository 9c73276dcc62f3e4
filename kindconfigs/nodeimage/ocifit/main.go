// SPDX-License-Identifier: Apache-2.0

// Command ocifit runs an OCI runtime with a specification that this host can satisfy. A process can give a container no capability
// that its own bounding set lacks, no OOM score below its own without CAP_SYS_RESOURCE, and no resource limit above its hard
// one; runtimes refuse such a container as a whole. ocifit takes out of the specification what cannot be had and never adds to
// what was asked for. It stands in runc's place, with runc's arguments; OCIFIT_RUNC names another runtime than /usr/sbin/runc, as crun,
// whose arguments are the same.
// `ocifit --missing` prints the capabilities that the host withholds, one per line.
package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	args := os.Args[1:]
	if len(args) == 1 && args[0] == "--missing" {
		h, err := thisHost()
		if err != nil {
			fail(err)
		}
		for _, name := range h.missing() {
			fmt.Println(name)
		}
		return
	}
	if file, process := specOf(args); file != "" {
		if err := fitFile(file, process); err != nil {
			fail(err)
		}
	}
	runc := cmp.Or(os.Getenv("OCIFIT_RUNC"), "/usr/sbin/runc")
	fail(fmt.Errorf("run %s: %w", runc, syscall.Exec(runc, append([]string{"runc"}, args...), os.Environ())))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "ocifit:", err)
	os.Exit(1)
}

// specOf finds the file that the runtime will read a process's rights from: a bundle's config.json, of which they are the member
// "process", or the process itself for exec. file is "" where it reads none.
func specOf(args []string) (file string, process bool) {
	command, bundle := "", "."
	for i, a := range args {
		name, value, joined := strings.Cut(a, "=")
		if !joined && i+1 < len(args) {
			value = args[i+1]
		}
		switch {
		case command == "" && (a == "create" || a == "run" || a == "exec"):
			command = a
		case command == "exec" && (name == "--process" || name == "-p"):
			file = value
		case name == "--bundle" || name == "-b":
			bundle = value
		}
	}
	switch command {
	case "exec":
		return file, true
	case "create", "run":
		return filepath.Join(bundle, "config.json"), false
	}
	return "", false
}
