// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// Statuses shows people what became of their objects, where they look for it. Its owner runs it, not the server.
type Statuses interface {
	// Offer hands over all conditions that hold now, of these objects; it never waits.
	Offer(o *source.Objects, conditions []Condition)
}

// StatusDir keeps one file for each condition in a directory that control alone writes to: source merges them over the
// objects, as Kubernetes would show them. Make it with NewStatusDir.
type StatusDir struct {
	dir    string
	log    *slog.Logger
	latest chan []Condition // holds the newest that is not written yet; one producer

	files map[string][]byte // what the directory holds; owned by Run
}

var _ Statuses = (*StatusDir)(nil)

// NewStatusDir prepares to write to dir; it does no I/O.
func NewStatusDir(dir string, log *slog.Logger) *StatusDir {
	return &StatusDir{dir: dir, log: log, latest: make(chan []Condition, 1), files: map[string][]byte{}}
}

// Offer implements Statuses.
func (s *StatusDir) Offer(_ *source.Objects, c []Condition) {
	select {
	case <-s.latest:
	default:
	}
	s.latest <- c
}

// Run writes what is offered until ctx ends. A directory that cannot be made or read is an error; a file that cannot be
// written is tried again every second.
func (s *StatusDir) Run(ctx context.Context) error {
	if err := s.open(); err != nil {
		return err
	}
	var now []Condition
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now = <-s.latest:
		case <-retry.C:
		}
		retry.Stop()
		if err := s.write(now); err != nil {
			s.log.Warn("conditions cannot be written, trying again", "dir", s.dir, "err", err)
			retry.Reset(time.Second)
		}
	}
}

// open learns what an earlier control plane wrote, so that the same is not written again and the rest goes.
func (s *StatusDir) open() error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("open status directory: %w", err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("open status directory: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".yaml") {
			continue
		}
		if strings.HasPrefix(e.Name(), ".") { // begun by one that was killed
			if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil {
				return fmt.Errorf("open status directory: %w", err)
			}
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.dir, e.Name()))
		if err != nil {
			return fmt.Errorf("open status directory: %w", err)
		}
		s.files[e.Name()] = data
	}
	return nil
}

// write makes the directory hold conditions and nothing else. What fails does not keep the rest from being written.
func (s *StatusDir) write(conditions []Condition) error {
	var errs []error
	wanted := make(map[string]bool, len(conditions))
	for i := range conditions {
		name, data, err := conditions[i].file()
		if err != nil {
			return err
		}
		wanted[name] = true
		if bytes.Equal(s.files[name], data) {
			continue
		}
		if err := replace(filepath.Join(s.dir, name), data); err != nil {
			errs = append(errs, err)
			continue
		}
		s.files[name] = data
	}
	for name := range s.files {
		if wanted[name] {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		delete(s.files, name)
	}
	return errors.Join(errs...)
}

// replace writes a file as a whole; source does not read hidden ones.
func replace(path string, data []byte) error {
	hidden := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(hidden, data, 0o644); err != nil { //nolint:gosec // the status of an object is for everyone to read
		return err
	}
	return os.Rename(hidden, path)
}

// file is a condition as part of its object.
func (c *Condition) file() (name string, data []byte, err error) {
	metadata := map[string]string{"namespace": c.Object.Namespace, "name": c.Object.Name}
	if c.UID != "" {
		metadata["uid"] = c.UID
	}
	status := "False"
	if c.Accepted {
		status = "True"
	}
	version := "security.istio.io/v1"
	condition := map[string]any{"type": ConditionType(c.Object.Kind), "status": status, "reason": c.Reason, "message": c.Message}
	if c.Generation != 0 {
		condition["observedGeneration"] = strconv.FormatInt(c.Generation, 10) // Istio's JSON has 64-bit numbers in quotes
	}
	if c.Object.Kind == "Service" { // which is Kubernetes' own
		version = "v1"
		delete(condition, "observedGeneration")
	}
	data, err = json.Marshal(map[string]any{
		"apiVersion": version, "kind": c.Object.Kind, "metadata": metadata,
		"status": map[string]any{"conditions": []any{condition}},
	})
	if err != nil {
		return "", nil, fmt.Errorf("encode the condition of %s: %w", c.Object, err)
	}
	return strings.ToLower(c.Object.Kind) + "." + c.Object.Namespace + "." + c.Object.Name + ".yaml", append(data, '\n'), nil
}
