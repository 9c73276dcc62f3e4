// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"time"
)

// logLine is one line of a log.
type logLine struct {
	source string
	time   time.Time // its own, or that of the line before it; zero if none had any
	text   []byte    // without its end
}

// merger reads several logs in the order of their lines' times.
type merger struct {
	since   time.Time
	stamped bool    // each line has a time in front that is not its own
	tails   []*tail // in the order of their names
}

// tail is one log that is being read.
type tail struct {
	source, path string
	file         *os.File
	lines        *bufio.Reader
	part         []byte // of a line whose end has not come
	head         *logLine
	last         time.Time
}

// open adds the logs that are not read yet. One that is gone already is passed over.
func (m *merger) open(paths map[string]string) error {
	for _, source := range slices.Sorted(maps.Keys(paths)) {
		if slices.ContainsFunc(m.tails, func(t *tail) bool { return t.source == source }) {
			continue
		}
		t := &tail{source: source, path: paths[source]}
		err := t.open()
		if errors.Is(err, fs.ErrNotExist) && len(paths) > 1 {
			continue
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		m.tails = append(m.tails, t)
	}
	slices.SortStableFunc(m.tails, func(a, b *tail) int { return bytes.Compare([]byte(a.source), []byte(b.source)) })
	return nil
}

func (t *tail) open() error {
	f, err := os.Open(t.path)
	if err != nil {
		return err
	}
	t.file, t.lines = f, bufio.NewReaderSize(f, 64<<10)
	return nil
}

func (m *merger) close() {
	for _, t := range m.tails {
		t.file.Close()
	}
}

// gone reports whether no log is there any more: the lab has ended.
func (m *merger) gone() bool {
	return !slices.ContainsFunc(m.tails, func(t *tail) bool {
		_, err := os.Stat(t.path)
		return err == nil
	})
}

// each hands on all lines that are there, the oldest first. Lines of one source keep their order, whatever their times.
func (m *merger) each(show func(logLine) error) error {
	for {
		var first *tail
		for _, t := range m.tails {
			if err := t.fill(m.since, m.stamped); err != nil {
				return err
			}
			if t.head != nil && (first == nil || t.head.time.Before(first.head.time)) {
				first = t
			}
		}
		if first == nil {
			return nil
		}
		line := *first.head
		first.head = nil
		if err := show(line); err != nil {
			return err
		}
	}
}

// fill makes head the next line that is not too old, if there is one.
func (t *tail) fill(since time.Time, stamped bool) error {
	for t.head == nil {
		piece, err := t.lines.ReadBytes('\n')
		t.part = append(t.part, piece...)
		if errors.Is(err, io.EOF) {
			return t.renew()
		}
		if err != nil {
			return err
		}
		text := bytes.TrimSuffix(t.part, []byte("\n"))
		t.part = nil
		if at, ok := lineTime(text); ok {
			t.last = at
		}
		if stamped {
			_, text, _ = bytes.Cut(text, []byte(" "))
		}
		if !t.last.Before(since) {
			t.head = &logLine{t.source, t.last, text}
		}
	}
	return nil
}

// renew opens the log anew if another file has its name: the pod was deleted and made again.
func (t *tail) renew() error {
	now, err := os.Stat(t.path)
	if err != nil {
		return nil // it will not grow any more
	}
	if open, err := t.file.Stat(); err == nil && os.SameFile(open, now) {
		return nil
	}
	old := t.file
	if err := t.open(); err != nil {
		return err
	}
	t.part = nil
	return old.Close()
}

// stamp finds the time of a line: a JSON object's or key=value text's "time", or a line that begins with one.
var stamp = regexp.MustCompile(`^(?:\{.*?"time":"|.*?\btime="?|)(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[^\s",]*)`)

func lineTime(line []byte) (time.Time, bool) {
	m := stamp.FindSubmatch(line[:min(len(line), 4096)])
	if m == nil {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(m[1]))
	return at, err == nil
}
