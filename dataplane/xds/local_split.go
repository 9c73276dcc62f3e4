// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
)

// localItem is the text of one object, as a list of one.
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

// splitLocal cuts a document in block style into its items without parsing it, and hands on one at a time, whose text is
// valid only during the call; a nil each only looks. ok is false for every other layout, which then must be parsed as a
// whole; it is not an error.
func splitLocal(document io.Reader, each func(localItem)) (ok bool, err error) {
	s := splitter{indent: -1, each: each}
	for r := bufio.NewReader(document); err == nil; {
		var text []byte
		if text, err = r.ReadBytes('\n'); len(text) > 0 && !s.add(text) {
			return false, nil
		}
	}
	if !errors.Is(err, io.EOF) {
		return false, err
	}
	s.end()
	return true, nil
}

// splitter is where splitLocal stands.
type splitter struct {
	each   func(localItem)
	item   localItem // being read; without text there is none
	line   int
	indent int // of the section's items; -1: none yet
	seen   []string
}

// end hands on the item, if there is one.
func (s *splitter) end() {
	if s.each != nil && len(s.item.text) > 0 {
		s.each(s.item)
	}
	s.item.text = s.item.text[:0]
}

// add takes the next line, and reports whether the layout is still one that it knows.
func (s *splitter) add(text []byte) bool {
	s.line++
	if bytes.ContainsAny(text, "\t\r") || anchor.Match(text) {
		return false
	}
	content := bytes.TrimLeft(text, " ")
	depth := len(text) - len(content)
	switch {
	case len(bytes.TrimSpace(content)) == 0 || content[0] == '#':
		if len(s.item.text) > 0 {
			s.item.text = append(s.item.text, text...)
		}
		return true
	case depth == 0 && content[0] != '-':
		return s.begin(text)
	}
	begins := content[0] == '-' && (len(content) == 1 || content[1] == ' ' || content[1] == '\n')
	switch {
	case s.item.section == "" || depth < s.indent || s.indent == -1 && !begins || depth == s.indent && !begins:
		return false
	case begins && (s.indent == -1 || depth == s.indent):
		s.end()
		s.indent, s.item.line = depth, s.line
	}
	s.item.text = append(s.item.text, text...)
	return true
}

// begin takes the line that names a section.
func (s *splitter) begin(text []byte) bool {
	m := sectionLine.FindSubmatch(bytes.TrimRight(text, "\n"))
	if m == nil || !slices.Contains(localSections, string(m[1])) || slices.Contains(s.seen, string(m[1])) {
		return false
	}
	s.end()
	s.item.section, s.indent = string(m[1]), -1
	s.seen = append(s.seen, s.item.section)
	return true
}
