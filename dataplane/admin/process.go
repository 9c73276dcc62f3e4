// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Process is what a daemon was started with. Its command reads both; values that may be secret are hidden when shown.
type Process struct {
	Args    []string
	Environ []string // NAME=value
}

type processPage struct {
	PID         int               `json:"pid"`
	Started     time.Time         `json:"started"`
	Uptime      string            `json:"uptime"`
	Args        List[string]      `json:"args"`
	Environment Map[string]       `json:"environment"`
	Goroutines  int               `json:"goroutines"`
	GOMAXPROCS  int               `json:"gomaxprocs"`
	Memory      map[string]uint64 `json:"memoryBytes"`
	Collections uint32            `json:"garbageCollections"`
}

func (s *Server) process() processPage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	p := processPage{
		PID: os.Getpid(), Started: s.started, Uptime: time.Since(s.started).Round(time.Second).String(),
		Environment: Map[string]{}, Goroutines: runtime.NumGoroutine(), GOMAXPROCS: runtime.GOMAXPROCS(0), Collections: m.NumGC,
		Memory: map[string]uint64{"heapInUse": m.HeapInuse, "heapIdle": m.HeapIdle, "heapReleased": m.HeapReleased, "stacks": m.StackInuse, "fromSystem": m.Sys},
	}
	for _, a := range s.cfg.Process.Args {
		name, value, found := strings.Cut(a, "=")
		if found {
			a = name + "=" + shown(name, value)
		}
		p.Args = append(p.Args, string(Scrub([]byte(a))))
	}
	for _, e := range s.cfg.Process.Environ {
		name, value, _ := strings.Cut(e, "=")
		p.Environment[name] = shown(name, value)
	}
	return p
}

type buildPage struct {
	Version  string      `json:"version"`
	Go       string      `json:"go"`
	Path     string      `json:"path"`
	Settings Map[string] `json:"settings"`
	Modules  Map[string] `json:"modules"`
}

func (s *Server) build() buildPage {
	p := buildPage{Version: s.cfg.Version, Go: runtime.Version(), Settings: Map[string]{}, Modules: Map[string]{}}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return p
	}
	p.Path = info.Path
	for _, b := range info.Settings {
		p.Settings[b.Key] = b.Value
	}
	for _, m := range info.Deps {
		p.Modules[m.Path] = m.Version
	}
	return p
}

const hidden = "(hidden)"

// secretWords are parts of names whose values are not shown.
var secretWords = []string{"TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL", "CREDENTIALS", "AUTH", "AUTHORIZATION", "JWT", "BEARER", "COOKIE", "HEADER"}

// shown is a setting's value, unless it may be secret: by its name, and then only if it is not a path, which tells nothing.
func shown(name, value string) string {
	words := strings.FieldsFunc(strings.ToUpper(name), func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') })
	secret := slices.ContainsFunc(words, func(w string) bool { return slices.Contains(secretWords, w) })
	if secret && value != "" && !filepath.IsAbs(value) && !strings.HasPrefix(value, "./") {
		return hidden
	}
	return string(Scrub([]byte(value)))
}

// What must leave no lab: private keys in PEM, TLS secrets as NSS logs them, and tokens, which are JSON Web Tokens here.
var (
	privateKey  = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----(\\[nr]|[\sA-Za-z0-9+/=,:])*(-----END [A-Z ]*PRIVATE KEY-----)?`) // also in JSON, also cut
	tlsSecret   = regexp.MustCompile(`\b((?:CLIENT|SERVER|EXPORTER|EARLY)_[A-Z0-9_]+) [0-9a-fA-F]{64} [0-9a-fA-F]{32,}`)
	webToken    = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`)
	bearerToken = regexp.MustCompile(`(?i)\b(bearer )[A-Za-z0-9._~+/=-]{8,}`)
)

// Scrub is text without private keys, TLS secrets and tokens.
func Scrub(text []byte) []byte {
	text = privateKey.ReplaceAll(text, []byte("(hidden private key)"))
	text = tlsSecret.ReplaceAll(text, []byte("${1} (hidden TLS secret)"))
	text = webToken.ReplaceAll(text, []byte("(hidden token)"))
	return bearerToken.ReplaceAll(text, []byte("${1}(hidden token)"))
}
