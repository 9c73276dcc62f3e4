// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/json"
	"fmt"
	"html"
	"net"
	"net/http"
	"strings"
)

// Section is a part of what a daemon knows. It has a page of its own, /debug/<Name>: JSON, or HTML for a browser, which says
// that it accepts text/html. ?format=json and ?format=html choose.
type Section struct {
	Name  string
	About string     // one line for the index
	Value func() any // made for each request, to be encoded as JSON
	Index bool       // it is short, and shown on the index page as well
}

func (s Section) path() string { return "/debug/" + s.Name }

// sections are those of the daemon and those that every process has.
func (s *Server) sections() []Section {
	own := s.cfg.Sections
	return append(own[:len(own):len(own)],
		Section{Name: "readiness", About: "what is waited for; nothing if it is ready", Value: func() any { return List[string](s.cfg.Readiness.Pending()) }},
		Section{Name: "process", About: "arguments, environment (secrets are hidden), memory, goroutines", Value: func() any { return s.process() }},
		Section{Name: "build", About: "version, toolchain and modules of this binary", Value: func() any { return s.build() }},
	)
}

func (s *Server) section(sec Section) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		value := sec.Value()
		if !wantsHTML(r, false) {
			s.writeJSON(w, value)
			return
		}
		var b strings.Builder
		s.head(&b, sec.Name)
		fmt.Fprintf(&b, "<p>%s. <a href=\"?format=json\">JSON</a></p>\n", html.EscapeString(sec.About))
		writeValue(&b, value)
		writeHTML(w, &b)
	}
}

// wantsHTML decides what r is answered with; otherwise is for a client that says nothing of it.
func wantsHTML(r *http.Request, otherwise bool) bool {
	switch r.URL.Query().Get("format") {
	case "html":
		return true
	case "json":
		return false
	}
	accept := r.Header.Get("Accept")
	switch {
	case strings.Contains(accept, "text/html"):
		return true
	case strings.Contains(accept, "application/json"):
		return false
	}
	return otherwise
}

func (s *Server) writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		s.cfg.Log.Debug("write page", "error", err)
	}
}

func writeHTML(w http.ResponseWriter, b *strings.Builder) {
	b.WriteString("</body></html>\n")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	fmt.Fprint(w, b.String())
}

func writeValue(b *strings.Builder, v any) {
	t, err := newTree(v)
	if err != nil {
		fmt.Fprintf(b, "<p>%s</p>", html.EscapeString(err.Error()))
		return
	}
	t.write(b)
}

const style = `:root{color-scheme:light dark}body{font:14px/1.4 system-ui,sans-serif;margin:1.5em}
table{border-collapse:collapse;margin:.3em 0}th,td{border:1px solid #8886;padding:.15em .5em;text-align:left;vertical-align:top}
th{font-weight:600}td{font-family:ui-monospace,monospace;font-size:13px}h1 small{font-weight:400;color:#888}ul{margin:.2em 0}`

// head begins a page.
func (s *Server) head(b *strings.Builder, title string) {
	name, version := html.EscapeString(s.cfg.Name), html.EscapeString(s.cfg.Version)
	fmt.Fprintf(b, "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>%s: %s</title><style>%s</style></head><body>\n", name, html.EscapeString(title), style)
	if title == "" {
		fmt.Fprintf(b, "<h1>%s %s</h1>\n", name, version)
		return
	}
	fmt.Fprintf(b, "<h1><a href=\"/debug/\">%s</a> <small>%s</small> %s</h1>\n", name, version, html.EscapeString(title))
}

// index lists the pages, and shows the sections that are short.
func (s *Server) index(pages []Page) http.HandlerFunc {
	type entry struct {
		Path  string `json:"path"`
		About string `json:"about"`
	}
	list := make([]entry, len(pages))
	for i, p := range pages {
		list[i] = entry{p.Path, p.About}
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if !wantsHTML(r, true) {
			s.writeJSON(w, struct {
				Name    string  `json:"name"`
				Version string  `json:"version"`
				Pages   []entry `json:"pages"`
			}{s.cfg.Name, s.cfg.Version, list})
			return
		}
		var b strings.Builder
		s.head(&b, "")
		b.WriteString("<table>\n")
		for _, p := range pages {
			link := html.EscapeString(p.Path)
			if !p.post {
				link = fmt.Sprintf("<a href=\"%s\">%s</a>", html.EscapeString(p.Path+p.query), link)
			}
			fmt.Fprintf(&b, "<tr><td>%s</td><td>%s</td></tr>\n", link, html.EscapeString(p.About))
		}
		b.WriteString("</table>\n")
		for _, sec := range s.sections() {
			if sec.Index {
				fmt.Fprintf(&b, "<h2>%s</h2>\n", html.EscapeString(sec.Name))
				writeValue(&b, sec.Value())
			}
		}
		writeHTML(w, &b)
	}
}

// onLoopback refuses what did not come in over loopback: whoever reaches these pages controls the daemon.
func onLoopback(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			http.Error(w, "this page is served on loopback alone", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
