// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
)

// write does everything that is not a list or a watch. f.mu is held. Objects that are kept are never changed.
func (f *fake) write(r request, q *http.Request, in object) (object, error) {
	old := f.objects[r.collection()][r.id()]
	switch {
	case r.kind.Kind == "TokenReview":
		return f.review(in), nil
	case r.sub == "token":
		return f.issue(r, in), nil
	case q.Method == http.MethodPost:
		r.name = text(in, "metadata", "name")
		if f.objects[r.collection()][r.id()] != nil {
			return nil, &status{http.StatusConflict, "AlreadyExists", r.name + " already exists"}
		}
		return f.store(r, nil, in), nil
	case q.Method == http.MethodPatch && strings.HasPrefix(q.Header.Get("Content-Type"), "application/merge-patch"):
		return f.patch(r, old, in)
	case q.Method == http.MethodPatch:
		return f.apply(r, q, old, in)
	case old == nil:
		return nil, notFound(r)
	case q.Method == http.MethodGet:
		return old, nil
	case q.Method == http.MethodDelete:
		f.record("DELETED", r, clone(old))
		if r.kind.Kind == "CustomResourceDefinition" {
			f.undefine(r.name)
		}
		return old, nil
	case q.Method == http.MethodPut:
		if err := current(old, in); err != nil {
			return nil, err
		}
		return f.store(r, old, in), nil
	default:
		return nil, &status{http.StatusMethodNotAllowed, "MethodNotAllowed", q.Method}
	}
}

// undefine removes the objects of a kind with its definition.
func (f *fake) undefine(definition string) {
	for _, k := range kinds {
		if k.Plural+"."+k.Group != definition {
			continue
		}
		for _, o := range f.objects[request{kind: k}.collection()] {
			f.record("DELETED", request{kind: k, namespace: text(o, "metadata", "namespace"), name: text(o, "metadata", "name")}, clone(o))
		}
	}
}

func current(old, in object) error {
	if v := text(in, "metadata", "resourceVersion"); v != "" && v != text(old, "metadata", "resourceVersion") {
		return &status{http.StatusConflict, "Conflict", "the object has been modified; please apply your changes to the latest version and try again"}
	}
	return nil
}

// store keeps o in the place of old, as one of the sub-resource that r names.
func (f *fake) store(r request, old, o object) object {
	o = clone(o)
	meta, _ := o["metadata"].(object)
	if meta == nil {
		meta = object{}
		o["metadata"] = meta
	}
	o["apiVersion"], o["kind"] = r.kind.groupVersion(), r.kind.Kind
	if r.namespace != "" {
		meta["namespace"] = r.namespace
	}
	if old == nil {
		meta["uid"] = fmt.Sprintf("uid-%d", f.version+1)
		meta["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		meta["generation"] = float64(1)
		f.record("ADDED", r, o)
		return o
	}
	was := old["metadata"].(object)
	meta["uid"], meta["creationTimestamp"], meta["generation"] = was["uid"], was["creationTimestamp"], was["generation"]
	if r.sub == "status" {
		kept := clone(old)
		kept["status"] = o["status"]
		if a, ok := meta["annotations"]; ok && r.kind.Kind == "Pod" { // of pods alone the server takes them with a status
			kept["metadata"].(object)["annotations"] = a
		}
		o = kept
	} else {
		if s, ok := old["status"]; ok {
			o["status"] = s
		}
		if n, ok := was["generation"].(float64); ok && !reflect.DeepEqual(o["spec"], old["spec"]) {
			meta["generation"] = n + 1
		}
	}
	o["metadata"].(object)["resourceVersion"] = was["resourceVersion"]
	if reflect.DeepEqual(o, old) {
		return old
	}
	f.record("MODIFIED", r, o)
	return o
}

// apply merges what a field manager wants, and removes what it wanted last time and does not any more.
func (f *fake) apply(r request, q *http.Request, old, in object) (object, error) {
	if ct := q.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/apply-patch") {
		return nil, &status{http.StatusUnsupportedMediaType, "UnsupportedMediaType", ct}
	}
	key := q.URL.Query().Get("fieldManager") + " " + r.collection() + "/" + r.id() + "/" + r.sub
	if old == nil {
		if r.sub != "" {
			return nil, notFound(r)
		}
		f.applied[key] = in
		return f.store(r, nil, in), nil
	}
	if err := current(old, in); err != nil {
		return nil, err
	}
	o, last := clone(old), f.applied[key]
	f.applied[key] = in
	if !r.kind.custom() {
		o, last, in = byType(o), byType(last), byType(in)
	}
	prune(o, last, in)
	merge(o, in)
	if !r.kind.custom() {
		o = listed(o)
	}
	return f.store(r, old, o), nil
}

// patch merges in into an object of the same uid and, if it names one, of the same version.
func (f *fake) patch(r request, old, in object) (object, error) {
	if old == nil {
		return nil, notFound(r)
	}
	if err := current(old, in); err != nil {
		return nil, err
	}
	if uid := text(in, "metadata", "uid"); uid != "" && uid != text(old, "metadata", "uid") {
		return nil, &status{http.StatusConflict, "Conflict", "the UID in the precondition is not the object's"}
	}
	o := clone(old)
	merge(o, in)
	return f.store(r, old, o), nil
}

// prune removes from o what last has and next has not.
func prune(o, last, next object) {
	for name, v := range last {
		if name == "metadata" || name == "apiVersion" || name == "kind" {
			continue
		}
		w, kept := next[name]
		inner, isObject := v.(object)
		switch {
		case isObject && kept:
			if have, ok := o[name].(object); ok {
				if want, ok := w.(object); ok {
					prune(have, inner, want)
				}
			}
		case !kept:
			delete(o, name)
		}
	}
}

func merge(o, in object) {
	for name, v := range in {
		want, isObject := v.(object)
		have, ok := o[name].(object)
		switch {
		case v == nil:
			delete(o, name)
		case isObject && ok:
			merge(have, want)
		case isObject:
			o[name] = object{}
			merge(o[name].(object), want)
		default:
			o[name] = v
		}
	}
}

// byType is o with its conditions as an object by type: in built-in kinds each has a manager of its own.
func byType(o object) object {
	if o = clone(o); o == nil {
		return nil
	}
	status, _ := o["status"].(object)
	if list, ok := status["conditions"].([]any); ok {
		named := object{}
		for _, c := range list {
			named[text(c.(object), "type")] = c
		}
		status["conditions"] = named
	}
	return o
}

// listed undoes byType.
func listed(o object) object {
	status, _ := o["status"].(object)
	if named, ok := status["conditions"].(object); ok {
		list := []any{}
		for _, name := range slices.Sorted(maps.Keys(named)) {
			list = append(list, named[name])
		}
		status["conditions"] = list
	}
	return o
}

func clone(o object) object {
	data, err := json.Marshal(o)
	if err != nil {
		panic(err) // it came from JSON
	}
	var out object
	if err := json.Unmarshal(data, &out); err != nil {
		panic(err)
	}
	return out
}

// issue makes a token that review knows. It has a JWT's form, since its reader may look when it ends.
func (f *fake) issue(r request, in object) object {
	spec, _ := in["spec"].(object)
	seconds, _ := spec["expirationSeconds"].(float64)
	ref, _ := spec["boundObjectRef"].(object)
	claims := object{
		"sub": "system:serviceaccount:" + r.namespace + ":" + r.name, "aud": spec["audiences"], "exp": time.Now().Unix() + int64(seconds),
		"jti": fmt.Sprint(len(f.tokens)),
	}
	data, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	token := "e30." + base64.RawURLEncoding.EncodeToString(data) + ".c2ln"
	extra := object{}
	if ref != nil {
		name := ref["name"].(string)
		extra["authentication.kubernetes.io/pod-name"], extra["authentication.kubernetes.io/pod-uid"] = []any{name}, []any{ref["uid"]}
		if pod := f.objects["/v1/pods"][r.namespace+"/"+name]; pod != nil {
			extra["authentication.kubernetes.io/node-name"] = []any{text(pod, "spec", "nodeName")}
		}
	}
	f.tokens[token] = object{"user": object{"username": claims["sub"], "extra": extra}, "audiences": spec["audiences"]}
	return object{"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "status": object{"token": token}}
}

func (f *fake) review(in object) object {
	spec, _ := in["spec"].(object)
	token, _ := spec["token"].(string)
	out := object{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": spec, "status": object{"error": "invalid bearer token"}}
	known := f.tokens[token]
	if known == nil {
		return out
	}
	wanted, _ := spec["audiences"].([]any)
	var both []any
	have, _ := known["audiences"].([]any)
	for _, w := range wanted {
		for _, h := range have {
			if w == h {
				both = append(both, w)
			}
		}
	}
	if len(both) == 0 {
		out["status"] = object{"error": fmt.Sprintf("token audiences %v is invalid for the target audiences %v", have, wanted)}
		return out
	}
	out["status"] = object{"authenticated": true, "user": known["user"], "audiences": both}
	return out
}
