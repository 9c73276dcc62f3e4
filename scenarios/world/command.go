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

// Command runs the lab command on this lab, as a person would, and returns what it prints. A lab that it cannot attach to is a
// skip.
func (w *World) Command(ctx context.Context, args ...string) (string, error) {
	if w.Dir == "" || settings.Bin == "" {
		ginkgo.Skip("the lab command attaches to labs of the netns driver, and AMBIENTLAB_BIN says where it is")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(settings.Bin, "lab"), append([]string{"--lab", filepath.Base(w.Dir)}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("lab %v: %w: %s", args, err, errOut.String())
	}
	return out.String(), nil
}
