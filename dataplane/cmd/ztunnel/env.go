// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/ztunnel"
)

// env reads variables and remembers what was wrong with each, so that an operator sees every mistake at once.
type env struct {
	vars map[string]string
	errs []error
}

func newEnv(environ []string) *env {
	e := &env{vars: make(map[string]string, len(environ))}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e.vars[k] = v
		}
	}
	return e
}

func (e *env) bad(name, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf("%s=%q: %s", name, e.vars[name], fmt.Sprintf(format, args...)))
}

// err joins all problems; nil if there is none.
func (e *env) err() error { return errors.Join(e.errs...) }

// text is the variable, or def where it is not set. A variable set to nothing is nothing.
func (e *env) text(name, def string) string {
	if v, ok := e.vars[name]; ok {
		return v
	}
	return def
}

func (e *env) flag(name string, def bool) bool {
	v := e.vars[name]
	switch strings.ToLower(v) {
	case "":
		return def
	case "true", "1", "yes", "on":
		return true
	case "false", "0", "no", "off":
		return false
	}
	e.bad(name, "not a truth value; use true or false")
	return def
}

func (e *env) number(name string, def, low, high uint64) uint64 {
	v := e.vars[name]
	if v == "" {
		return def
	}
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil || n < low || n > high {
		e.bad(name, "not a number from %d to %d", low, high)
		return def
	}
	return n
}

// duration accepts Go's form ("90s", "5m", "24h") and days ("1d").
func (e *env) duration(name string, def time.Duration) time.Duration {
	v := e.vars[name]
	if v == "" {
		return def
	}
	if days, ok := strings.CutSuffix(v, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			return time.Duration(n) * 24 * time.Hour
		}
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		e.bad(name, `not a positive duration; write for instance "30s", "5m" or "24h"`)
		return def
	}
	return d
}

// backoff reads the bounds name_MIN and name_MAX. One that is given alone moves the other's default out of its way.
func (e *env) backoff(name string, low, high time.Duration) ztunnel.Backoff {
	b := ztunnel.Backoff{Min: e.duration(name+"_MIN", low), Max: e.duration(name+"_MAX", high)}
	switch {
	case b.Min <= b.Max:
	case e.vars[name+"_MAX"] == "":
		b.Max = b.Min
	case e.vars[name+"_MIN"] == "":
		b.Min = b.Max
	default:
		e.bad(name+"_MIN", "more than %s_MAX", name)
	}
	return b
}

func (e *env) addr(name string) netip.Addr {
	v := e.vars[name]
	if v == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(v)
	if err != nil {
		e.bad(name, "not an IP address")
	}
	return a
}

// server splits a control plane's address, "https://host:port" or "host:port"; "" means none.
func (e *env) server(name, def string) string {
	v := e.text(name, def)
	if v == "" {
		return ""
	}
	addr, secure := strings.CutPrefix(v, "https://")
	if !secure && strings.Contains(v, "://") {
		e.bad(name, "only https:// is spoken; write https://host:port")
		return ""
	}
	i := strings.LastIndexByte(addr, ':')
	if i <= 0 || strings.ContainsAny(addr, "/?#") {
		e.bad(name, "not a server; write https://host:port")
		return ""
	}
	if p, err := strconv.ParseUint(addr[i+1:], 10, 16); err != nil || p == 0 {
		e.bad(name, "the port is not a number from 1 to 65535")
		return ""
	}
	return addr
}

// headers collects the variables that begin with prefix as gRPC metadata: XDS_HEADER_x_y=z is "x_y: z".
func (e *env) headers(prefix string) map[string]string {
	var out map[string]string
	for k, v := range e.vars {
		if name, ok := strings.CutPrefix(k, prefix); ok && name != "" {
			if out == nil {
				out = make(map[string]string)
			}
			out[strings.ToLower(name)] = v
		}
	}
	return out
}

// unsupported refuses a setting that would change what the operator may rely on and that this ztunnel cannot honour.
func (e *env) unsupported(name, why string) { e.bad(name, "%s; unset it", why) }
