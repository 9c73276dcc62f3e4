// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"slices"
	"strings"
)

// mostRows bounds a table of a page: who wants more, reads the JSON.
const mostRows = 500

// mostText bounds what is shown of one string.
const mostText = 400

// tree is a JSON value whose objects keep the order of their keys.
type tree struct {
	text   string // of a scalar; "" for null
	list   bool
	object bool
	keys   []string // of an object
	items  []*tree  // of a list or an object
}

// newTree is v as JSON has it.
func newTree(v any) (*tree, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return readTree(d)
}

func readTree(d *json.Decoder) (*tree, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	t := &tree{}
	switch token {
	case json.Delim('['):
		t.list = true
	case json.Delim('{'):
		t.object = true
	case nil:
		return t, nil
	default:
		t.text = fmt.Sprint(token)
		return t, nil
	}
	for d.More() {
		if t.object {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			t.keys = append(t.keys, fmt.Sprint(key))
		}
		item, err := readTree(d)
		if err != nil {
			return nil, err
		}
		t.items = append(t.items, item)
	}
	_, err = d.Token() // the closing bracket
	return t, err
}

func (t *tree) scalar() bool { return !t.list && !t.object }

// write writes t as HTML: lists of objects as tables with a column per key, objects as tables with a row per key.
func (t *tree) write(b *strings.Builder) {
	switch {
	case t.scalar():
		b.WriteString(html.EscapeString(shortened(t.text)))
	case len(t.items) == 0:
		b.WriteString("<i>none</i>")
	case t.object:
		b.WriteString("<table>")
		for i, k := range t.keys[:min(len(t.keys), mostRows)] {
			fmt.Fprintf(b, "<tr><th scope=\"row\">%s</th><td>", html.EscapeString(k))
			t.items[i].cell(b)
			b.WriteString("</td></tr>\n")
		}
		b.WriteString("</table>")
		t.writeRest(b)
	case slices.ContainsFunc(t.items, func(i *tree) bool { return !i.object }):
		b.WriteString("<ul>")
		for _, i := range t.items[:min(len(t.items), mostRows)] {
			b.WriteString("<li>")
			i.cell(b)
			b.WriteString("</li>\n")
		}
		b.WriteString("</ul>")
		t.writeRest(b)
	default:
		t.writeRows(b)
	}
}

func (t *tree) writeRows(b *strings.Builder) {
	rows := t.items[:min(len(t.items), mostRows)]
	var columns []string
	for _, r := range rows {
		for _, k := range r.keys {
			if !slices.Contains(columns, k) {
				columns = append(columns, k)
			}
		}
	}
	b.WriteString("<table><tr>")
	for _, c := range columns {
		fmt.Fprintf(b, "<th scope=\"col\">%s</th>", html.EscapeString(c))
	}
	b.WriteString("</tr>\n")
	for _, r := range rows {
		b.WriteString("<tr>")
		for _, c := range columns {
			b.WriteString("<td>")
			if i := slices.Index(r.keys, c); i >= 0 {
				r.items[i].cell(b)
			}
			b.WriteString("</td>")
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString("</table>")
	t.writeRest(b)
}

func (t *tree) writeRest(b *strings.Builder) {
	if more := len(t.items) - mostRows; more > 0 {
		fmt.Fprintf(b, "<p>%d more: the JSON has them.</p>", more)
	}
}

// cell writes t so that it fits into a table: what is deep is folded.
func (t *tree) cell(b *strings.Builder) {
	flat := !slices.ContainsFunc(t.items, func(i *tree) bool { return !i.scalar() })
	switch {
	case t.scalar() || len(t.items) == 0:
		t.write(b)
	case t.list && flat && len(t.items) <= 8:
		for i, item := range t.items {
			if i > 0 {
				b.WriteString("<br>")
			}
			item.write(b)
		}
	default:
		fmt.Fprintf(b, "<details><summary>%d</summary>", len(t.items))
		t.write(b)
		b.WriteString("</details>")
	}
}

func shortened(s string) string {
	if r := []rune(s); len(r) > mostText {
		return string(r[:mostText]) + "…"
	}
	return s
}
