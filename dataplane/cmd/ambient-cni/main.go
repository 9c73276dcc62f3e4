// SPDX-License-Identifier: Apache-2.0

// Command ambient-cni is the chained CNI plugin that keeps a mesh pod from starting before it is enrolled.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ambientlab/ambientlab/dataplane/cni/plugin"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := plugin.Plugin{Stdout: os.Stdout, Stderr: os.Stderr}
	skel.PluginMainFuncs(p.Funcs(ctx), plugin.Versions, "ambient-cni keeps a mesh pod from starting before it is enrolled")
}
