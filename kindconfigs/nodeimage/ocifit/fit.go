// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// capabilities by number, as capabilities(7) lists them.
var capabilities = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID
 CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK
 CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT
 CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL
 CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF
 CAP_CHECKPOINT_RESTORE`)

// newer are capabilities that Docker before 23 does not know, so that its privileged containers lack them.
var newer = []string{"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"}

// limits are the resource limits that a specification may name; others are left as they are.
var limits = map[string]int{
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_NPROC": unix.RLIMIT_NPROC,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
}

// host is what this process can give.
type host struct {
	bounding uint64
	oomScore int64
	hard     map[string]uint64 // by the limit's name
}

func thisHost() (host, error) {
	h := host{hard: map[string]uint64{}}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return h, err
	}
	for line := range strings.Lines(string(status)) {
		if set, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			if h.bounding, err = strconv.ParseUint(strings.TrimSpace(set), 16, 64); err != nil {
				return h, fmt.Errorf("read bounding set: %w", err)
			}
		}
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return h, err
	}
	if h.oomScore, err = strconv.ParseInt(strings.TrimSpace(string(score)), 10, 64); err != nil {
		return h, fmt.Errorf("read OOM score: %w", err)
	}
	for name, number := range limits {
		var l syscall.Rlimit
		if err := syscall.Getrlimit(number, &l); err != nil {
			return h, fmt.Errorf("read %s: %w", name, err)
		}
		h.hard[name] = l.Max
	}
	return h, nil
}

func (h host) can(name string) bool {
	i := slices.Index(capabilities, name)
	return i >= 0 && h.bounding&(1<<i) != 0
}

func (h host) missing() (names []string) {
	for _, name := range capabilities {
		if !h.can(name) {
			names = append(names, name)
		}
	}
	return names
}

func fitFile(file string, process bool) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	h, err := thisHost()
	if err != nil {
		return err
	}
	out, err := h.fit(data, process)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return os.WriteFile(file, out, 0o600)
}

// fit is the specification, or the process of one, without what the host cannot give. What it does not know it keeps.
func (h host) fit(data []byte, process bool) ([]byte, error) {
	var spec map[string]any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber() // a limit does not fit a float
	if err := d.Decode(&spec); err != nil {
		return nil, err
	}
	p := spec
	if !process {
		p, _ = spec["process"].(map[string]any)
	}
	if p == nil {
		return data, nil
	}
	h.fitCapabilities(p)
	if !h.can("CAP_SYS_RESOURCE") {
		h.fitOOMScore(p)
		h.fitLimits(p)
	}
	return json.Marshal(spec)
}

func (h host) fitCapabilities(p map[string]any) {
	sets, _ := p["capabilities"].(map[string]any)
	for set, v := range sets {
		asked, _ := v.([]any)
		given := slices.DeleteFunc(slices.Clone(asked), func(c any) bool {
			name, _ := c.(string)
			return !h.can(name)
		})
		if privileged(asked) {
			for _, name := range newer {
				if h.can(name) && !slices.Contains(asked, any(name)) {
					given = append(given, name)
				}
			}
		}
		sets[set] = given
	}
}

// privileged reports whether all that exist were meant: these three are never asked for together otherwise.
func privileged(asked []any) bool {
	for _, name := range []string{"CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_AUDIT_READ"} {
		if !slices.Contains(asked, any(name)) {
			return false
		}
	}
	return true
}

func (h host) fitOOMScore(p map[string]any) {
	asked, ok := p["oomScoreAdj"].(json.Number)
	if score, err := asked.Int64(); ok && err == nil && score < h.oomScore {
		p["oomScoreAdj"] = h.oomScore
	}
}

func (h host) fitLimits(p map[string]any) {
	all, _ := p["rlimits"].([]any)
	for _, l := range all {
		limit, _ := l.(map[string]any)
		name, _ := limit["type"].(string)
		most, known := h.hard[name]
		for _, which := range []string{"hard", "soft"} {
			asked, _ := limit[which].(json.Number)
			if n, err := strconv.ParseUint(asked.String(), 10, 64); known && err == nil && n > most {
				limit[which] = most
			}
		}
	}
}
