// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// object is one as JSON has it.
type object = map[string]any

// fake keeps objects in memory and serves them as an API server would, without asking who wants them.
type fake struct {
	address string
	server  *http.Server
	served  chan struct{}

	mu      sync.Mutex // guards what follows
	version int
	objects map[string]map[string]object // by path of the collection without a namespace, then "namespace/name"
	applied map[string]object            // what each field manager applied last, by manager, path and key
	events  []event
	wake    chan struct{} // closed at the next event
	tokens  map[string]object
}

type event struct {
	version    int
	collection string
	kind       string // ADDED, MODIFIED or DELETED
	object     object
}

// Fake starts a fake API server, and ends it with the test.
func Fake(t *testing.T) *Server {
	t.Helper()
	f := &fake{
		objects: map[string]map[string]object{}, applied: map[string]object{}, tokens: map[string]object{}, wake: make(chan struct{}),
		address: "127.0.0.1:0",
	}
	s := &Server{Name: "fake", backend: f}
	f.start(t)
	t.Cleanup(func() { f.stop(t) })
	s.connect(t, "http://"+f.address, "administrator")
	for _, name := range []string{"default", "kube-system"} {
		s.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}\n")
	}
	return s
}

func (f *fake) start(t testing.TB) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", f.address)
	must(t, err)
	f.address, f.served = l.Addr().String(), make(chan struct{})
	f.server = &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	go func() { defer close(f.served); _ = f.server.Serve(l) }()
}

func (f *fake) stop(testing.TB) {
	_ = f.server.Close()
	<-f.served
}

// request is a path of the API, taken apart.
type request struct {
	kind                 kind
	namespace, name, sub string
}

func (r request) collection() string { return "/" + r.kind.groupVersion() + "/" + r.kind.Plural }

func (r request) id() string { return r.namespace + "/" + r.name }

// parse tells what a path is about; without a resource in it, it is the group's own page.
func parse(path string) (groupVersion string, r request, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) >= 2 && parts[0] == "api":
		groupVersion, parts = parts[1], parts[2:]
	case len(parts) >= 3 && parts[0] == "apis":
		groupVersion, parts = parts[1]+"/"+parts[2], parts[3:]
	default:
		return "", r, false
	}
	if len(parts) > 2 && parts[0] == "namespaces" && parts[2] != "status" {
		r.namespace, parts = parts[1], parts[2:]
	}
	if len(parts) == 0 {
		return groupVersion, r, true
	}
	for _, k := range kinds {
		if k.groupVersion() == groupVersion && k.Plural == parts[0] {
			r.kind = k
		}
	}
	if len(parts) > 1 {
		r.name = parts[1]
	}
	if len(parts) > 2 {
		r.sub = parts[2]
	}
	return groupVersion, r, r.kind.Kind != ""
}

// ServeHTTP implements http.Handler.
func (f *fake) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	groupVersion, r, ok := parse(q.URL.Path)
	if !ok || !f.installed(r.kind) {
		fail(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
		return
	}
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return
	}
	switch {
	case r.kind.Kind == "":
		f.discover(w, groupVersion)
	case q.Method == http.MethodGet && r.name == "" && (q.URL.Query().Get("watch") == "true" || q.URL.Query().Get("watch") == "1"):
		f.watch(q.Context(), w, r, q)
	case q.Method == http.MethodGet && r.name == "":
		f.list(w, r, q)
	default:
		var in object
		if err := yaml.Unmarshal(body, &in); err != nil {
			fail(w, http.StatusBadRequest, "BadRequest", err.Error())
			return
		}
		f.mu.Lock()
		out, err := f.write(r, q, in)
		f.mu.Unlock()
		var s *status
		switch {
		case errors.As(err, &s):
			fail(w, s.code, s.reason, s.message)
		case err != nil:
			fail(w, http.StatusInternalServerError, "InternalError", err.Error())
		case q.Method == http.MethodPost:
			answer(w, http.StatusCreated, out)
		default:
			answer(w, http.StatusOK, out)
		}
	}
}

// status is a refusal.
type status struct {
	code            int
	reason, message string
}

func (s *status) Error() string { return s.message }

func fail(w http.ResponseWriter, code int, reason, message string) {
	answer(w, code, object{"kind": "Status", "apiVersion": "v1", "metadata": object{}, "status": "Failure", "message": message, "reason": reason, "code": code})
}

func answer(w http.ResponseWriter, code int, o object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(o)
}

// installed reports whether a kind is built in, or was defined.
func (f *fake) installed(k kind) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return k.Kind == "" || !k.custom() || f.objects["/apiextensions.k8s.io/v1/customresourcedefinitions"]["/"+k.Plural+"."+k.Group] != nil
}

func (f *fake) discover(w http.ResponseWriter, groupVersion string) {
	var resources []object
	for _, k := range kinds {
		if k.groupVersion() == groupVersion && f.installed(k) {
			resources = append(resources, object{"name": k.Plural, "singularName": "", "kind": k.Kind, "namespaced": k.Namespaced, "verbs": []string{}},
				object{"name": k.Plural + "/status", "singularName": "", "kind": k.Kind, "namespaced": k.Namespaced, "verbs": []string{}})
		}
	}
	if resources == nil {
		fail(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
		return
	}
	answer(w, http.StatusOK, object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": groupVersion, "resources": resources})
}

// selected reports whether an object is in a request's namespace and has the fields that its selector names.
func selected(o object, r request, selector string) bool {
	if ns := text(o, "metadata", "namespace"); r.namespace != "" && ns != r.namespace {
		return false
	}
	for term := range strings.SplitSeq(selector, ",") {
		if path, want, ok := strings.Cut(term, "="); ok && text(o, strings.Split(path, ".")...) != want {
			return false
		}
	}
	return true
}

func text(o object, path ...string) string {
	for _, p := range path[:len(path)-1] {
		o, _ = o[p].(object)
	}
	s, _ := o[path[len(path)-1]].(string)
	return s
}

func (f *fake) list(w http.ResponseWriter, r request, q *http.Request) {
	f.mu.Lock()
	items := []object{}
	for _, o := range f.objects[r.collection()] {
		if selected(o, r, q.URL.Query().Get("fieldSelector")) {
			items = append(items, o)
		}
	}
	version := strconv.Itoa(f.version)
	f.mu.Unlock()
	answer(w, http.StatusOK, object{
		"kind": r.kind.Kind + "List", "apiVersion": r.kind.groupVersion(), "metadata": object{"resourceVersion": version}, "items": items,
	})
}

// watch streams events from a version on, or from all that is there, to a reflector that asked for that.
func (f *fake) watch(ctx context.Context, w http.ResponseWriter, r request, q *http.Request) {
	query := q.URL.Query()
	from, _ := strconv.Atoi(query.Get("resourceVersion"))
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	send := func(kind string, o object) { _ = enc.Encode(object{"type": kind, "object": o}) }
	f.mu.Lock()
	if query.Get("sendInitialEvents") == "true" {
		for _, o := range f.objects[r.collection()] {
			if selected(o, r, query.Get("fieldSelector")) {
				send("ADDED", o)
			}
		}
		from = f.version
		send("BOOKMARK", object{"kind": r.kind.Kind, "apiVersion": r.kind.groupVersion(), "metadata": object{
			"resourceVersion": strconv.Itoa(from), "annotations": object{"k8s.io/initial-events-end": "true"},
		}})
	}
	f.mu.Unlock()
	for {
		f.mu.Lock()
		wake := f.wake
		for _, e := range f.events {
			if e.version <= from || e.collection != r.collection() {
				continue
			}
			switch {
			case selected(e.object, r, query.Get("fieldSelector")):
				send(e.kind, e.object)
			case e.kind == "MODIFIED" && query.Get("fieldSelector") != "":
				send("DELETED", e.object)
			}
		}
		from = f.version
		f.mu.Unlock()
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// record makes a change known. f.mu is held.
func (f *fake) record(kind string, r request, o object) {
	f.version++
	o["metadata"].(object)["resourceVersion"] = strconv.Itoa(f.version)
	if f.objects[r.collection()] == nil {
		f.objects[r.collection()] = map[string]object{}
	}
	if kind == "DELETED" {
		delete(f.objects[r.collection()], r.id())
	} else {
		f.objects[r.collection()][r.id()] = o
	}
	f.events = append(f.events, event{f.version, r.collection(), kind, o})
	close(f.wake)
	f.wake = make(chan struct{})
}

func notFound(r request) error {
	return &status{http.StatusNotFound, "NotFound", fmt.Sprintf("%s %q not found", r.kind.Plural, r.name)}
}
