// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/onsi/ginkgo/v2"
)

// Command runs the lab command on this lab, as a person would, and returns what it prints.
func (w *World) Command(ctx context.Context, args ...string) (string, error) {
	if settings.Bin == "" {
		ginkgo.Skip("AMBIENTLAB_BIN does not say where the lab command is")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(settings.Bin, "lab"), append(w.flags(), args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("lab %v: %w: %s", args, err, errOut.String())
	}
	return out.String(), nil
}

// flags choose this lab. On a cluster that stands it is the only one, of its kubeconfig.
func (w *World) flags() []string {
	if w.Dir != "" {
		return []string{"--lab", w.driver + "/" + filepath.Base(w.Dir)}
	}
	if d, ok := w.Driver.(interface{ Name() string }); ok {
		return []string{"--lab", w.driver + "/" + d.Name()}
	}
	if d, ok := w.Driver.(interface{ Kubeconfig() string }); ok {
		return []string{"--kubeconfig", d.Kubeconfig()}
	}
	return nil
}
