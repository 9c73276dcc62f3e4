// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// inspect shows the network state of a pod, node/NAME or external/NAME.
func (a *app) inspect(ctx context.Context, name string) error {
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	var target lab.Target
	kind, rest, _ := strings.Cut(name, "/")
	switch kind {
	case "node":
		target.Node = rest
	case "external":
		target.External = rest
	default:
		if target.Pod, err = findPod(ctx, l, name); err != nil {
			return err
		}
	}
	in, err := l.Inspect(ctx, target)
	if err != nil {
		return err
	}
	return a.print(in, func() {
		for _, part := range []struct{ name, text string }{
			{"links", in.Links}, {"routes", in.Routes}, {"rules", in.Rules}, {"sockets", in.Sockets},
		} {
			fmt.Fprintf(a.stdout, "# %s\n%s\n\n", part.name, strings.TrimSpace(part.text))
		}
	})
}
