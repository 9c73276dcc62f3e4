// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// document is one object, or a part of one, that a file holds.
type document struct {
	key     source.Key
	obj     source.Object
	partial bool
	sum     [sha256.Size]byte // of its JSON
}

// header is what is read of a document before it is known to be good.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Spec   json.RawMessage `json:"spec"`
	Status json.RawMessage `json:"status"`
}

// parse fills e from a file's bytes. Documents that are bad are replaced by what old held under the same key; a
// document whose key cannot be read stands for all of old's keys that are not there any more.
func parse(e *entry, rel string, data []byte, old *entry) {
	partial := strings.HasPrefix(rel, "status"+string(filepath.Separator))
	taken, nameless := map[source.Key]bool{}, false
	for _, raw := range split(data) {
		doc, problems := decode(raw, partial, old)
		for i := range problems {
			problems[i].File = rel
		}
		switch {
		case len(problems) == 0 && doc.key == source.Key{}: // empty document
		case doc.key == source.Key{}:
			nameless = true
		case taken[doc.key]:
			problems = append(problems, source.Problem{File: rel, Key: doc.key, Err: errors.New("is in this file twice, the first one wins")})
		default:
			taken[doc.key] = true
			if len(problems) > 0 {
				doc, _ = find(old, doc.key)
			}
			if doc.obj != nil {
				e.docs = append(e.docs, doc)
			}
		}
		e.problems = append(e.problems, problems...)
	}
	if nameless && old != nil {
		for _, d := range old.docs {
			if !taken[d.key] {
				e.docs = append(e.docs, d)
			}
		}
	}
}

func find(e *entry, key source.Key) (document, bool) {
	if e != nil {
		if i := slices.IndexFunc(e.docs, func(d document) bool { return d.key == key }); i >= 0 {
			return e.docs[i], true
		}
	}
	return document{}, false
}

// split cuts at YAML's document markers. Each piece keeps the line numbers it has in the file.
func split(data []byte) [][]byte {
	var docs [][]byte
	var cur bytes.Buffer
	line := 0
	flush := func() {
		if len(bytes.TrimSpace(cur.Bytes())) > 0 {
			docs = append(docs, slices.Clone(cur.Bytes()))
		}
		cur.Reset()
		cur.WriteString(strings.Repeat("\n", line))
	}
	for l := range bytes.Lines(data) {
		line++
		if rest, ok := bytes.CutPrefix(l, []byte("---")); ok && (len(rest) == 0 || strings.ContainsRune(" \t\r\n#", rune(rest[0]))) {
			flush()
			continue
		}
		cur.Write(l)
	}
	flush()
	return docs
}

// Decode reads one object from YAML or JSON as strictly as a file's: an unknown field, a wrong type and what the kind's
// own check finds are problems, each with its field.
func Decode(data []byte) (source.Object, []source.Problem) {
	doc, problems := decode(data, false, nil)
	if doc.obj == nil && len(problems) == 0 {
		problems = []source.Problem{{Err: errors.New("is empty")}}
	}
	return doc.obj, problems
}

// decode reads one document. The key is set if it could be read, even if there are problems.
func decode(raw []byte, partial bool, old *entry) (document, []source.Problem) {
	data := bytes.TrimSpace(raw)
	if !json.Valid(data) {
		var err error
		if data, err = yaml.YAMLToJSONStrict(raw); err != nil {
			return document{}, []source.Problem{{Err: fmt.Errorf("read YAML: %w", bare(err))}}
		}
		if string(data) == "null" {
			return document{}, nil
		}
	}
	var h header
	if err := json.Unmarshal(data, &h); err != nil {
		return document{}, []source.Problem{typeProblem(err)}
	}
	if h.Kind == "" {
		return document{}, []source.Problem{{Field: "kind", Err: errors.New("is missing")}}
	}
	doc := document{
		key:     source.Key{Kind: h.Kind, Namespace: h.Metadata.Namespace, Name: h.Metadata.Name},
		partial: partial, sum: sha256.Sum256(data),
	}
	kind, problem := kindOf(h)
	if problem != nil {
		problem.Key = doc.key
		return doc, []source.Problem{*problem}
	}
	if was, ok := find(old, doc.key); ok && was.sum == doc.sum && was.partial == partial {
		return was, nil
	}
	obj, problems := decodeObject(kind, data, h)
	problems = append(problems, checkPartial(h, partial)...)
	if len(problems) == 0 {
		for _, bad := range kind.Check(obj) {
			problems = append(problems, source.Problem{Field: bad.Field, Err: bad.Err})
		}
	}
	for i := range problems {
		problems[i].Key = doc.key
	}
	doc.obj = obj
	return doc, problems
}

func kindOf(h header) (source.Kind, *source.Problem) {
	kind, ok := source.KindOf(h.Kind)
	if !ok {
		return kind, &source.Problem{Field: "kind", Err: fmt.Errorf("objects of kind %q are not read", h.Kind)}
	}
	if !slices.Contains(kind.Versions, h.APIVersion) {
		return kind, &source.Problem{
			Field: "apiVersion",
			Err:   fmt.Errorf("%q is not a version of %s that is read (%s)", h.APIVersion, h.Kind, strings.Join(kind.Versions, ", ")),
		}
	}
	return kind, nil
}

func decodeObject(kind source.Kind, data []byte, h header) (source.Object, []source.Problem) {
	obj := kind.New()
	if problems := strictProto(obj, h); len(problems) > 0 {
		return obj, problems
	}
	strict, err := kjson.UnmarshalStrict(data, obj)
	if err != nil {
		return obj, []source.Problem{typeProblem(err)}
	}
	var problems []source.Problem
	for _, e := range strict {
		p := source.Problem{Err: e}
		var fe kjson.FieldError
		if errors.As(e, &fe) {
			what, _, _ := strings.Cut(e.Error(), " \"")
			p = source.Problem{Field: fe.FieldPath(), Err: errors.New(what)}
		}
		problems = append(problems, p)
	}
	return obj, problems
}

// checkPartial holds a status file to what is merged: what else it says would be lost in silence.
func checkPartial(h header, partial bool) []source.Problem {
	if !partial {
		return nil
	}
	switch string(h.Spec) {
	case "", "null", "{}", `{"containers":null}`: // what a typed encoder writes for a spec that is not there
		return nil
	}
	return []source.Problem{{Field: "spec", Err: errors.New("a file under status/ may hold only annotations and a status")}}
}

func typeProblem(err error) source.Problem {
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		return source.Problem{Field: te.Field, Err: fmt.Errorf("cannot be a %s, wants %s", te.Value, te.Type)}
	}
	return source.Problem{Err: fmt.Errorf("read object: %w", err)}
}

// bare strips the prefixes that sigs.k8s.io/yaml puts before the parser's own sentence.
func bare(err error) error {
	for e := errors.Unwrap(err); e != nil; e = errors.Unwrap(err) {
		err = e
	}
	return err
}
