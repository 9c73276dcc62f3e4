// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// problems collects everything that is wrong with one resource, so that a producer can mend it in one go.
type problems struct{ list []string }

func (p *problems) add(field, format string, args ...any) {
	p.list = append(p.list, field+": "+fmt.Sprintf(format, args...))
}

// err is nil if nothing was added; what names the operation and its object.
func (p *problems) err(what string) error {
	if len(p.list) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", what, errors.New(strings.Join(p.list, "; ")))
}

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
