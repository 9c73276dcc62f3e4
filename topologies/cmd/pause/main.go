// SPDX-License-Identifier: Apache-2.0

// Command pause is the init of a lab's nodes and pods, started by `lab hold` alone. It is a program of its own because a lab
// starts one for each of them: initialising all that the lab command links costs ten times what this does.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
)

func main() {
	if err := pause.Serve(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "pause:", err)
		os.Exit(1)
	}
}
