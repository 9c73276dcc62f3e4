// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed catalogue/*.yaml
var catalogue embed.FS

// Catalogue names the topologies that come with the project, sorted.
func Catalogue() []string {
	files, err := fs.Glob(catalogue, "catalogue/*.yaml")
	if err != nil {
		return nil // the pattern is constant and good
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(strings.TrimPrefix(f, "catalogue/"), ".yaml")
	}
	return files
}

// Source is the text of a topology of the catalogue.
func Source(name string) ([]byte, error) {
	data, err := catalogue.ReadFile("catalogue/" + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("no topology %q in the catalogue; there are %s", name, strings.Join(Catalogue(), ", "))
	}
	return data, nil
}

// Open loads a topology of the catalogue.
func Open(name string) (*Spec, error) {
	data, err := Source(name)
	if err != nil {
		return nil, err
	}
	s, err := Load(strings.NewReader(string(data)))
	if err != nil {
		return nil, fmt.Errorf("load topology %s:\n%w", name, err)
	}
	return s, nil
}
