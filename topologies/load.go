// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxBytes is more than any topology needs; it keeps a wrong file from filling memory.
const maxBytes = 4 << 20

// LoadFile is Load of a file.
func LoadFile(path string) (*Spec, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load topology: %w", err)
	}
	defer func() { _ = f.Close() }()
	s, err := Load(f)
	if err != nil {
		return nil, fmt.Errorf("load topology %s:\n%w", path, err)
	}
	return s, nil
}

// Load reads one topology: strict, with defaults filled in, and validated. Everything that is wrong with its content is
// reported at once as Problems.
func Load(r io.Reader) (*Spec, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	if len(data) > maxBytes {
		return nil, Problems{{Message: fmt.Sprintf("longer than %d bytes", maxBytes)}}
	}
	root, err := document(data)
	if err != nil {
		return nil, Problems{{Message: err.Error()}}
	}
	d := &decoder{lines: map[string]int{}}
	s := d.spec(root)
	s.setDefaults()
	d.merge(s.validate())
	d.problems.sort()
	return s, d.problems.err()
}

func document(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc, next yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("is empty")
	case err != nil:
		return nil, err
	}
	if err := dec.Decode(&next); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("has a second document (line %d); a topology is one", next.Line)
	}
	return doc.Content[0], nil
}

// merge adds what validation found, except where it only echoes something that could not be decoded.
func (d *decoder) merge(found []finding) {
	decoded := len(d.problems)
next:
	for _, f := range found {
		for _, p := range d.problems[:decoded] {
			if within(f.Path, p.Path) || within(p.Path, f.Path) {
				continue next
			}
			for _, dep := range f.deps {
				if within(p.Path, dep) {
					continue next
				}
			}
		}
		f.Line = d.lineOf(f.Path)
		d.problems = append(d.problems, f.Problem)
	}
}

// broken reports whether something at or around path could not be decoded.
func (d *decoder) broken(path string) bool {
	for _, p := range d.problems {
		if within(path, p.Path) {
			return true
		}
	}
	return false
}

// lineOf is the line of path, or of the nearest thing around it that is in the file.
func (d *decoder) lineOf(path string) int {
	for {
		if line, ok := d.lines[path]; ok {
			return line
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return d.lines[""]
		}
		path = path[:i]
	}
}
