// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// How long a look at all processes serves further questions: for a pod that it has, and for one that it has not.
const (
	scanKeeps     = time.Second
	scanKeepsNone = 100 * time.Millisecond
)

// ProcFinder finds the namespaces of pods in /proc, by the uid in the path of their processes' cgroup: version 1 or 2, with
// systemd's names or without, of containerd, CRI-O or another. A process can be in another pod's namespace, or in one of its
// own making; so a namespace belongs to the pod of the oldest process in it, and a pod's namespace is, of those that belong
// to it, the one with its oldest process: the sandbox's. The host's own belongs to nobody.
type ProcFinder struct {
	proc string // set once

	mu    sync.Mutex // guards what follows
	found map[string]process
	at    time.Time
	deny  error // some process's namespace could not be read
}

// process is one in a pod's cgroup.
type process struct {
	pid     int
	uid     string // the pod's
	started uint64 // in clock ticks since the host's start
	ns      inode
}

// inode identifies a namespace.
type inode struct{ dev, number uint64 }

// NewProcFinder looks in proc, where the host's /proc is.
func NewProcFinder(proc string) *ProcFinder { return &ProcFinder{proc: proc} }

// Find implements Finder.
func (f *ProcFinder) Find(uid string) (*netns.NS, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.locate(uid, time.Now())
	if err != nil {
		return nil, fmt.Errorf("find the namespace of pod %s: %w", uid, err)
	}
	ns, err := f.open(p)
	if err != nil {
		f.at = time.Time{} // what was seen is no longer so
		return nil, fmt.Errorf("find the namespace of pod %s: %w", uid, err)
	}
	return ns, nil
}

// locate finds the process that stands for a pod. It is called with mu held.
func (f *ProcFinder) locate(uid string, now time.Time) (process, error) {
	uid = strings.ToLower(uid)
	p, ok := f.found[uid]
	if age := now.Sub(f.at); (ok && age > scanKeeps) || (!ok && age > scanKeepsNone) {
		if err := f.scan(); err != nil {
			return process{}, err
		}
		f.at = now
		p, ok = f.found[uid]
	}
	switch {
	case ok:
		return p, nil
	case f.deny != nil:
		return process{}, fmt.Errorf("%w (has the agent SYS_PTRACE, and no AppArmor profile?)", f.deny)
	default:
		return process{}, fmt.Errorf("no process in %s is its own: %w", f.proc, fs.ErrNotExist)
	}
}

// open opens the namespace that was seen, and no other that took the process's number since.
func (f *ProcFinder) open(p process) (*netns.NS, error) {
	ns, err := netns.Open(f.path(p.pid, "ns/net"))
	if err != nil {
		return nil, err
	}
	now, ok, err := f.read(p.pid)
	if err != nil || !ok || now != p || ns.Inode() != p.ns.number {
		ns.Close()
		return nil, fmt.Errorf("process %d has changed: %w", p.pid, cmpErr(err, fs.ErrNotExist))
	}
	return ns, nil
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func (f *ProcFinder) path(pid int, elem string) string {
	return filepath.Join(f.proc, strconv.Itoa(pid), elem)
}

// scan reads all processes. Those that end meanwhile are left out.
func (f *ProcFinder) scan() error {
	host, err := namespaceOf(f.path(1, "ns/net"))
	if err != nil {
		return fmt.Errorf("read the host's own namespace (is the host's /proc mounted at %s?): %w", f.proc, err)
	}
	entries, err := os.ReadDir(f.proc)
	if err != nil {
		return err
	}
	var all []process
	f.deny = nil
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, ok, err := f.read(pid)
		switch {
		case errors.Is(err, fs.ErrPermission):
			f.deny = err
		case err == nil && ok && p.ns != host:
			all = append(all, p)
		}
	}
	f.found = owners(all)
	return nil
}

// owners is each pod's process.
func owners(all []process) map[string]process {
	owner := map[inode]process{}
	for _, p := range all {
		if o, ok := owner[p.ns]; !ok || p.olderThan(o) {
			owner[p.ns] = p
		}
	}
	out := map[string]process{}
	for _, p := range owner {
		if o, ok := out[p.uid]; !ok || p.olderThan(o) {
			out[p.uid] = p
		}
	}
	return out
}

func (p process) olderThan(o process) bool {
	if p.started != o.started {
		return p.started < o.started
	}
	return p.pid < o.pid
}

// read reads one process; false if it is in no pod.
func (f *ProcFinder) read(pid int) (p process, ok bool, err error) {
	cgroup, err := os.ReadFile(f.path(pid, "cgroup"))
	if err != nil {
		return p, false, err
	}
	p = process{pid: pid, uid: podOf(string(cgroup))}
	if p.uid == "" {
		return p, false, nil
	}
	if p.started, err = f.started(pid); err != nil {
		return p, false, err
	}
	p.ns, err = namespaceOf(f.path(pid, "ns/net"))
	return p, err == nil, err
}

// Fields of /proc/<pid>/stat after the command, which is in brackets and may contain anything.
const startedField = 19

func (f *ProcFinder) started(pid int) (uint64, error) {
	stat, err := os.ReadFile(f.path(pid, "stat"))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= startedField {
		return 0, fmt.Errorf("read %s: only %d fields", f.path(pid, "stat"), len(fields))
	}
	return strconv.ParseUint(string(fields[startedField]), 10, 64)
}

func namespaceOf(path string) (inode, error) {
	info, err := os.Stat(path)
	if err != nil {
		return inode{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return inode{}, fmt.Errorf("stat %s: no inode", path)
	}
	return inode{st.Dev, st.Ino}, nil
}

func ownerOf(path string) (uint32, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("stat %s: no owner", path)
	}
	return st.Uid, nil
}

// podDir is the directory that kubelet makes for a pod: pod<uid> under cgroupfs, …-pod<uid>.slice under systemd, which has _ for
// -. A static pod's uid is a hash without either.
var podDir = regexp.MustCompile(`[/-]pod([0-9a-f]{8}[-_]?(?:[0-9a-f]{4}[-_]?){3}[0-9a-f]{12})(?:\.slice)?(?:/|$)`)

// podOf is the uid of the pod that a process is in, by its /proc/<pid>/cgroup; "" if it is in none. Where a node is itself in a pod
// the last one counts.
func podOf(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		path, uid := parts[2], ""
		for m := podDir.FindStringSubmatchIndex(path); m != nil; m = podDir.FindStringSubmatchIndex(path) {
			uid = path[m[2]:m[3]]
			path = path[m[3]:]
		}
		if uid != "" {
			return strings.ReplaceAll(uid, "_", "-")
		}
	}
	return ""
}
