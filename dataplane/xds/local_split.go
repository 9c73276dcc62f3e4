// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"regexp"
	"slices"
)

// localItem is the text of one object, as a list of one. It is a part of the document.
type localItem struct {
	section string
	line    int // of its first line, from 1
	text    []byte
}

var (
	sectionLine = regexp.MustCompile(`^([A-Za-z]+):\s*(#.*)?$`)
	// An anchor may be used in another item, so its document must be parsed as a whole.
	anchor = regexp.MustCompile(`(?m)(^|[\s\[{,:-])&[^\s]`)
)

// splitLocal cuts a document in block style into its items without parsing it. ok is false for every other layout, which
// then must be parsed as a whole; it is not an error.
func splitLocal(document []byte) (items []localItem, ok bool) {
	if bytes.ContainsAny(document, "\t\r") || anchor.Match(document) {
		return nil, false
	}
	section, indent, line, end := "", -1, 0, 0
	var seen []string
	var item *localItem
	begin := 0 // of item's text
	for text := range bytes.Lines(document) {
		line++
		start := end
		end += len(text)
		content := bytes.TrimLeft(text, " ")
		depth := len(text) - len(content)
		switch {
		case len(bytes.TrimSpace(content)) == 0 || content[0] == '#':
			if item != nil {
				item.text = document[begin:end]
			}
			continue
		case depth == 0 && content[0] != '-':
			m := sectionLine.FindSubmatch(bytes.TrimRight(text, "\n"))
			if m == nil || !slices.Contains(localSections, string(m[1])) || slices.Contains(seen, string(m[1])) {
				return nil, false
			}
			section, indent, item = string(m[1]), -1, nil
			seen = append(seen, section)
			continue
		}
		begins := content[0] == '-' && (len(content) == 1 || content[1] == ' ' || content[1] == '\n')
		switch {
		case section == "" || depth < indent || indent == -1 && !begins || depth == indent && !begins:
			return nil, false
		case begins && (indent == -1 || depth == indent):
			indent = depth
			items = append(items, localItem{section: section, line: line})
			item, begin = &items[len(items)-1], start
		}
		item.text = document[begin:end]
	}
	return items, true
}
