// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder walks the YAML tree by hand, because a decode into structs stops at the first wrong type and forgets lines.
type decoder struct {
	problems Problems
	lines    map[string]int // by path
}

// read consumes the value at a path.
type read func(n *yaml.Node, path string)

type fields map[string]read

func (d *decoder) add(n *yaml.Node, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{Path: path, Line: n.Line, Message: fmt.Sprintf(format, args...)})
}

// resolve follows aliases and notes the line. ok is false for null, which means "not given".
func (d *decoder) resolve(n *yaml.Node, path string) (_ *yaml.Node, ok bool) {
	d.lines[path] = n.Line
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n, n.Tag != "!!null"
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!str":
		return "a string"
	}
	return n.Tag
}

func (d *decoder) object(n *yaml.Node, path string, fs fields) {
	n, ok := d.resolve(n, path)
	if !ok {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.add(n, path, "want a mapping, got %s", kindName(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		f, known := fs[key.Value]
		switch {
		case !known:
			d.add(key, at, "unknown field; known are %s", strings.Join(slices.Sorted(maps.Keys(fs)), ", "))
		case seen[key.Value]:
			d.add(key, at, "given twice")
		default:
			seen[key.Value] = true
			f(value, at)
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// list reads a sequence, element by element.
func list[T any](d *decoder, out *[]T, each func(n *yaml.Node, path string) T) read {
	return func(n *yaml.Node, path string) {
		n, ok := d.resolve(n, path)
		if !ok {
			return
		}
		if n.Kind != yaml.SequenceNode {
			d.add(n, path, "want a list, got %s", kindName(n))
			return
		}
		for i, e := range n.Content {
			*out = append(*out, each(e, path+"["+strconv.Itoa(i)+"]"))
		}
	}
}

// scalar reads a scalar of a YAML type and hands its text on.
func (d *decoder) scalar(tag, want string, set func(text string) error) read {
	return func(n *yaml.Node, path string) {
		n, ok := d.resolve(n, path)
		if !ok {
			return
		}
		if n.Kind != yaml.ScalarNode || n.Tag != tag {
			hint := ""
			if tag == "!!str" && n.Kind == yaml.ScalarNode {
				hint = "; quote it"
			}
			d.add(n, path, "want %s, got %s%s", want, kindName(n), hint)
			return
		}
		if err := set(n.Value); err != nil {
			d.add(n, path, "%v", err)
		}
	}
}

func (d *decoder) string(out *string) read {
	return d.scalar("!!str", "a string", func(s string) error { *out = s; return nil })
}

func (d *decoder) bool(out *bool) read {
	return d.scalar("!!bool", "true or false", func(s string) error {
		v, err := strconv.ParseBool(strings.ToLower(s))
		*out = v
		return err
	})
}

func (d *decoder) int(out *int, least, most int) read {
	return d.scalar("!!int", "a number", func(s string) error {
		v, err := strconv.Atoi(s)
		if err != nil || v < least || v > most {
			return fmt.Errorf("%s is not from %d to %d", s, least, most)
		}
		*out = v
		return nil
	})
}

func (d *decoder) portNumber(out *uint16) read {
	return func(n *yaml.Node, path string) {
		var v int
		d.int(&v, 1, 65535)(n, path)
		*out = uint16(v)
	}
}

func (d *decoder) strings(out *[]string) read {
	return list(d, out, func(n *yaml.Node, path string) (s string) {
		d.string(&s)(n, path)
		return s
	})
}

func (d *decoder) stringMap(out *map[string]string) read {
	return func(n *yaml.Node, path string) {
		n, ok := d.resolve(n, path)
		if !ok {
			return
		}
		if n.Kind != yaml.MappingNode {
			d.add(n, path, "want a mapping of strings, got %s", kindName(n))
			return
		}
		*out = map[string]string{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			var s string
			key := n.Content[i].Value
			d.string(&s)(n.Content[i+1], join(path, key))
			if _, twice := (*out)[key]; twice {
				d.add(n.Content[i], join(path, key), "given twice")
			}
			(*out)[key] = s
		}
	}
}

func (d *decoder) prefix(n *yaml.Node, path string) (p netip.Prefix) {
	d.scalar("!!str", "a subnet like 10.244.0.0/16", func(s string) error {
		v, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("%q is not a subnet like 10.244.0.0/16", s)
		}
		if v != v.Masked() {
			return fmt.Errorf("%s has bits behind its length; do you mean %s?", v, v.Masked())
		}
		p = v
		return nil
	})(n, path)
	return p
}

func (d *decoder) addr(n *yaml.Node, path string) (a netip.Addr) {
	d.scalar("!!str", "an IP address", func(s string) error {
		v, err := netip.ParseAddr(s)
		if err != nil || v.Zone() != "" || v.Is4In6() {
			return fmt.Errorf("%q is not an IP address", s)
		}
		a = v
		return nil
	})(n, path)
	return a
}

// port reads 8080 or "8080@localhost".
func (d *decoder) port(n *yaml.Node, path string) (p Port) {
	n, ok := d.resolve(n, path)
	if !ok || n.Kind != yaml.ScalarNode {
		d.add(n, path, "want a port like 8080 or 8080@localhost, got %s", kindName(n))
		return p
	}
	p, err := ParsePort(n.Value)
	if err != nil {
		d.add(n, path, "%v", err)
	}
	return p
}
