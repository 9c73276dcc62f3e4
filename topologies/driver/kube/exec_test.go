// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

func TestRefusalIsToldFromOutput(t *testing.T) {
	begin := workload.Refusal("MARK")
	for _, c := range []struct {
		name   string
		writes []string
		errno  syscall.Errno
		passed string
	}{
		{"refused", []string{begin + "2\n"}, syscall.ENOENT, ""},
		{"refused, in pieces", []string{begin[:4], begin[4:], "13", "\n"}, syscall.EACCES, ""},
		{"output", []string{"hello\n", begin + "2\n"}, 0, "hello\n" + begin + "2\n"},
		{"output that begins alike", []string{"work", "ing\n"}, 0, "working\n"},
		{"nothing", nil, 0, ""},
		{"no number", []string{begin + "what\n"}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			r := &refusal{mark: "MARK", to: &out}
			for _, text := range c.writes {
				if n, err := r.Write([]byte(text)); err != nil || n != len(text) {
					t.Fatalf("%d, %v", n, err)
				}
			}
			if r.errno() != c.errno || out.String() != c.passed {
				t.Errorf("%v, %q", r.errno(), out.String())
			}
		})
	}
}

func TestStartErrorOfRuntimes(t *testing.T) {
	const runc = "Internal error occurred: Internal error occurred: error executing command in container: failed to exec in container: failed to start exec \"1\": OCI runtime exec failed: exec failed: unable to start container process: "
	const crun = "failed to exec in container: failed to start exec \"1\": OCI runtime exec failed: "
	for text, want := range map[string]error{
		crun + "executable file `x` not found in $PATH: No such file or directory: unknown": fs.ErrNotExist,
		crun + "open executable: Permission denied: unknown":                                fs.ErrPermission,
		crun + "open executable: Operation not permitted: unknown":                          fs.ErrPermission, // a directory
		crun + "exec format error: Exec format error: unknown":                              syscall.ENOEXEC,
		runc + `exec: "x": executable file not found in $PATH: unknown`:                     fs.ErrNotExist,
		runc + `exec: "/no/such/thing": stat /no/such/thing: no such file or directory`:     fs.ErrNotExist,
		runc + `exec: "/etc/passwd": permission denied: unknown`:                            fs.ErrPermission,
		runc + `exec /bin/thing: exec format error`:                                         syscall.ENOEXEC,
		"pods \"x\" not found: no such file or directory":                                   nil,
	} {
		err := startError("x", errors.New(text))
		var started *lab.StartError
		if is := errors.As(err, &started); is != (want != nil) || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
