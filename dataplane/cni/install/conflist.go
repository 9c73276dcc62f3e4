// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// versions are those of the CNI specification that the plugin speaks. What is older knows no chains.
var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// object is a JSON object that keeps the order of its fields and the text of their values: the file is somebody else's.
type object struct {
	names  []string
	values map[string]json.RawMessage
}

func parseObject(data []byte) (*object, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object: %w", errOr(err, errors.New("it begins otherwise")))
	}
	o := &object{values: map[string]json.RawMessage{}}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		o.set(t.(string), v)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	return o, nil
}

func errOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func (o *object) set(name string, v json.RawMessage) {
	if _, ok := o.values[name]; !ok {
		o.names = append(o.names, name)
	}
	o.values[name] = v
}

// take removes a field and returns its value, nil if there is none.
func (o *object) take(name string) json.RawMessage {
	v := o.values[name]
	delete(o.values, name)
	o.names = slices.DeleteFunc(o.names, func(n string) bool { return n == name })
	return v
}

// text is a field's string, "" if it has none.
func (o *object) text(name string) string {
	var s string
	_ = json.Unmarshal(o.values[name], &s) // what is no string is none
	return s
}

func (o *object) raw() json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, n := range o.names {
		if i > 0 {
			b.WriteByte(',')
		}
		name, _ := json.Marshal(n) // a string always has a form
		b.Write(name)
		b.WriteByte(':')
		b.Write(o.values[n])
	}
	b.WriteByte('}')
	return b.Bytes()
}

func (o *object) file() []byte {
	var b bytes.Buffer
	_ = json.Indent(&b, o.raw(), "", "  ") // it was JSON
	b.WriteByte('\n')
	return b.Bytes()
}

// network is one configuration: a list of plugins that are called one after the other.
type network struct {
	object  *object // without the plugins
	plugins []*object
	at      int // of the plugins among the fields
}

// parseNetwork reads a list, or, from before there were lists, one plugin's configuration.
func parseNetwork(data []byte, list bool) (*network, error) {
	o, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	if !list {
		return single(o)
	}
	n := &network{object: o, at: slices.Index(o.names, "plugins")}
	var plugins []json.RawMessage
	if err := json.Unmarshal(o.take("plugins"), &plugins); err != nil || len(plugins) == 0 {
		return nil, fmt.Errorf("no plugins: %w", errOr(err, errors.New("an empty list")))
	}
	for i, p := range plugins {
		po, err := parseObject(p)
		if err != nil {
			return nil, fmt.Errorf("plugins[%d]: %w", i, err)
		}
		n.plugins = append(n.plugins, po)
	}
	return n, nil
}

// single makes a list of one plugin: version and name are the list's, everything else is the plugin's.
func single(o *object) (*network, error) {
	if o.text("type") == "" {
		return nil, errors.New("no type: which plugin is it for?")
	}
	n := &network{object: &object{values: map[string]json.RawMessage{}}, at: 2, plugins: []*object{o}}
	for _, name := range []string{"cniVersion", "name"} {
		if v := o.take(name); v != nil {
			n.object.set(name, v)
		}
	}
	return n, nil
}

// file is the network as a list.
func (n *network) file() []byte {
	plugins := make([]json.RawMessage, 0, len(n.plugins))
	for _, p := range n.plugins {
		plugins = append(plugins, p.raw())
	}
	list, _ := json.Marshal(plugins) // they were JSON
	out := &object{names: slices.Clone(n.object.names), values: map[string]json.RawMessage{"plugins": list}}
	for k, v := range n.object.values {
		out.values[k] = v
	}
	out.names = slices.Insert(out.names, min(n.at, len(out.names)), "plugins")
	return out.file()
}

// has reports whether a plugin of that type is in the chain.
func (n *network) has(plugin string) bool {
	return slices.ContainsFunc(n.plugins, func(p *object) bool { return p.text("type") == plugin })
}

// drop takes a plugin out of the chain.
func (n *network) drop(plugin string) {
	n.plugins = slices.DeleteFunc(n.plugins, func(p *object) bool { return p.text("type") == plugin })
}

// chain puts entry in the chain, once, and reports whether it was not so. It comes last where it is new; where it is, after some
// other plugin, it stays: a second one that wants to be last must not begin a quarrel.
func (n *network) chain(entry *object) (changed bool, err error) {
	if v := n.object.text("cniVersion"); !slices.Contains(versions, v) {
		return false, fmt.Errorf("its cniVersion is %q, and the plugin speaks %s: change it there", v, strings.Join(versions, ", "))
	}
	plugin := entry.text("type")
	var is []int
	for i, p := range n.plugins {
		if p.text("type") == plugin {
			is = append(is, i)
		}
	}
	switch {
	case len(is) == 1 && is[0] > 0 && same(n.plugins[is[0]].raw(), entry.raw()):
		return false, nil
	case len(is) == 1 && is[0] > 0:
		n.plugins[is[0]] = entry
	default:
		n.drop(plugin)
		n.plugins = append(n.plugins, entry)
	}
	return true, nil
}

// same compares JSON by what it says.
func same(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
