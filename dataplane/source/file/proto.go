// SPDX-License-Identifier: Apache-2.0

package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

// strictProto finds fields that the JSON decoders of Istio's types would skip in silence, and values of the wrong
// shape, which those decoders report without a path.
func strictProto(obj source.Object, h header) []source.Problem {
	var spec, status proto.Message
	switch o := obj.(type) {
	case *istiov1.ServiceEntry:
		spec, status = &o.Spec, &o.Status
	case *istiov1.WorkloadEntry:
		spec, status = &o.Spec, &o.Status
	case *securityv1.AuthorizationPolicy:
		spec, status = &o.Spec, &o.Status
	case *securityv1.PeerAuthentication:
		spec, status = &o.Spec, &o.Status
	default:
		return nil
	}
	var w walker
	w.raw("spec", h.Spec, spec)
	w.raw("status", h.Status, status)
	return w.problems
}

type walker struct{ problems []source.Problem }

func (w *walker) addf(path, format string, args ...any) {
	w.problems = append(w.problems, source.Problem{Field: path, Err: fmt.Errorf(format, args...)})
}

func (w *walker) raw(path string, raw json.RawMessage, m proto.Message) {
	if len(raw) == 0 {
		return
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		w.addf(path, "read JSON: %w", err)
		return
	}
	w.message(path, v, m.ProtoReflect().Descriptor())
}

func (w *walker) message(path string, v any, d protoreflect.MessageDescriptor) {
	if v == nil || d.FullName().Parent() == "google.protobuf" { // well-known types have JSON forms of their own
		return
	}
	obj, ok := v.(map[string]any)
	if !ok {
		w.addf(path, "cannot be a %s, wants an object", jsonType(v))
		return
	}
	for _, name := range slices.Sorted(maps.Keys(obj)) {
		at := path + "." + name
		f := d.Fields().ByJSONName(name)
		if f == nil {
			f = d.Fields().ByTextName(name)
		}
		if f == nil {
			w.problems = append(w.problems, source.Problem{Field: at, Err: errors.New("unknown field")})
			continue
		}
		w.field(at, obj[name], f)
	}
}

func (w *walker) field(at string, v any, f protoreflect.FieldDescriptor) {
	switch {
	case v == nil:
	case f.IsMap():
		m, ok := v.(map[string]any)
		if !ok {
			w.addf(at, "cannot be a %s, wants an object", jsonType(v))
			return
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			w.mapKey(at+"["+k+"]", k, f.MapKey())
			w.value(at+"["+k+"]", m[k], f.MapValue())
		}
	case f.IsList():
		list, ok := v.([]any)
		if !ok {
			w.addf(at, "cannot be a %s, wants a list", jsonType(v))
			return
		}
		if len(list) == 0 && f.Parent().FullName() == "istio.security.v1beta1.Rule" {
			// The decoder reads it as left out, which means "any"; whoever writes it more likely means "none".
			w.addf(at, "is an empty list: leave it out if any is meant")
		}
		for i, e := range list {
			w.value(fmt.Sprintf("%s[%d]", at, i), e, f)
		}
	default:
		w.value(at, v, f)
	}
}

// mapKey holds a key to its type: the decoder would refuse it, but not say where it stands.
func (w *walker) mapKey(at, key string, f protoreflect.FieldDescriptor) {
	if f.Kind() != protoreflect.Uint32Kind {
		return
	}
	if _, err := strconv.ParseUint(key, 10, 32); err != nil {
		w.addf(at, "the key is not a number from 0 to 4294967295")
	}
}

func (w *walker) value(at string, v any, f protoreflect.FieldDescriptor) {
	got := jsonType(v)
	want := got
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		w.message(at, v, f.Message())
	case protoreflect.EnumKind:
		if s, ok := v.(string); ok && f.Enum().Values().ByName(protoreflect.Name(s)) == nil {
			w.addf(at, "%q is not one of %s", s, enumNames(f.Enum()))
		}
	case protoreflect.StringKind, protoreflect.BytesKind:
		want = "string"
	case protoreflect.BoolKind:
		want = "boolean"
	default:
		if got != "string" { // protobuf's JSON allows numbers in quotes
			want = "number"
		}
	}
	if got != want {
		w.addf(at, "cannot be a %s, wants a %s", got, want)
	}
}

func enumNames(e protoreflect.EnumDescriptor) string {
	s := ""
	for i := range e.Values().Len() {
		if i > 0 {
			s += ", "
		}
		s += string(e.Values().Get(i).Name())
	}
	return s
}

func jsonType(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case bool:
		return "boolean"
	case float64:
		return "number"
	case []any:
		return "list"
	default:
		return "object"
	}
}
