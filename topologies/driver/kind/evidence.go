// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

var _ lab.Evidence = (*Driver)(nil)

// Collect implements lab.Evidence: what package kube collects, and what `kind export logs` does.
func (d *Driver) Collect(ctx context.Context, add func(name, about string, content []byte)) error {
	d.mu.Lock()
	c := d.cluster
	d.mu.Unlock()
	err := d.Driver.Collect(ctx, add)
	if c == nil {
		return err
	}
	return errors.Join(err, c.export(ctx, add))
}

// told are the exported files that a bundle has under other names, journals of kubelet and containerd and pods' logs, and those
// that no person can read.
var told = []string{"kubelet.log", "containerd.log", "containers", "pods", "journal", "btmp", "wtmp", "lastlog", "faillog"}

func (c *cluster) export(ctx context.Context, add func(name, about string, content []byte)) error {
	dir, err := os.MkdirTemp("", "ambientlab-export-")
	if err != nil {
		return fmt.Errorf("export logs: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	_, runErr := c.run(ctx, nil, c.kind, "export", "logs", dir, "--name", c.name)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case slices.Contains(told, e.Name()) && e.IsDir():
			return fs.SkipDir
		case slices.Contains(told, e.Name()) || !e.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err == nil {
			add("kind/"+filepath.ToSlash(rel), "of `kind export logs`", text)
		}
		return err
	})
	return errors.Join(runErr, err)
}
