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
	target, err := findTarget(ctx, l, name)
	if err != nil {
		return err
	}
	in, err := l.Inspect(ctx, target)
	if err != nil {
		return err
	}
	return a.print(in, func() {
		for _, part := range []struct{ name, text string }{
			{"links", in.Links}, {"routes", in.Routes}, {"rules", in.Rules}, {"refused", strings.Join(in.Refused, "\n")}, {"sockets", in.Sockets},
		} {
			fmt.Fprintf(a.stdout, "# %s\n%s\n\n", part.name, strings.TrimSpace(part.text))
		}
	})
}

// findTarget finds a namespace by name: a pod's, node/NAME or external/NAME.
func findTarget(ctx context.Context, l *lab.Lab, name string) (t lab.Target, err error) {
	kind, rest, _ := strings.Cut(name, "/")
	switch kind {
	case "node":
		t.Node = rest
	case "external":
		t.External = rest
	default:
		t.Pod, err = findPod(ctx, l, name)
	}
	return t, err
}
