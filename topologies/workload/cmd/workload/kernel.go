// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/ambientlab/ambientlab/topologies/workload"
)

// kernel looks at and fills what the pod's own kernel state is.
func kernel(args []string, stdin io.Reader, stdout io.Writer) error {
	want := map[string]int{"counters": 1, "flush": 1, "fill": 2}[args[0]]
	if len(args) != want {
		return usageError{fmt.Errorf("%s: want %d arguments\n%s", args[0], want-1, usage)}
	}
	switch args[0] {
	case "flush":
		return workload.FlushRules()
	case "counters":
		counters, err := workload.TCPCounters()
		if err != nil {
			return err
		}
		return json.NewEncoder(stdout).Encode(counters)
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return usageError{fmt.Errorf("fill: %q is not a number", args[1])}
	}
	took, err := workload.FillConntrack(n)
	if err == nil {
		_, err = fmt.Fprintln(stdout, took)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, stdin)
	}
	return errors.Join(err, workload.EmptyConntrack())
}

// under starts a command with a mark, or kills what has it, or starts one in another namespace.
func under(args []string, stderr io.Writer) error {
	switch {
	case args[0] == workload.KillCommand && len(args) == 2:
		return workload.KillMarked(args[1])
	case args[0] == workload.UnderCommand && len(args) > 2:
		if err := workload.Under(args[1], args[2:], stderr); err != nil {
			return errFailed // it was said
		}
		return nil
	case args[0] == workload.ElsewhereCommand && len(args) > 2:
		return workload.Elsewhere(args[1], args[2:])
	}
	return usageError{fmt.Errorf("%s: too few or too many arguments\n%s", args[0], usage)}
}
