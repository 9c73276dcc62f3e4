// SPDX-License-Identifier: Apache-2.0

package child

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

var capabilities = map[string]uint{
	"AUDIT_CONTROL": unix.CAP_AUDIT_CONTROL, "AUDIT_READ": unix.CAP_AUDIT_READ, "AUDIT_WRITE": unix.CAP_AUDIT_WRITE,
	"BLOCK_SUSPEND": unix.CAP_BLOCK_SUSPEND, "BPF": unix.CAP_BPF, "CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE,
	"CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"FOWNER": unix.CAP_FOWNER, "FSETID": unix.CAP_FSETID, "IPC_LOCK": unix.CAP_IPC_LOCK, "IPC_OWNER": unix.CAP_IPC_OWNER,
	"KILL": unix.CAP_KILL, "LEASE": unix.CAP_LEASE, "LINUX_IMMUTABLE": unix.CAP_LINUX_IMMUTABLE,
	"MAC_ADMIN": unix.CAP_MAC_ADMIN, "MAC_OVERRIDE": unix.CAP_MAC_OVERRIDE, "MKNOD": unix.CAP_MKNOD,
	"NET_ADMIN": unix.CAP_NET_ADMIN, "NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "NET_BROADCAST": unix.CAP_NET_BROADCAST,
	"NET_RAW": unix.CAP_NET_RAW, "PERFMON": unix.CAP_PERFMON, "SETFCAP": unix.CAP_SETFCAP, "SETGID": unix.CAP_SETGID,
	"SETPCAP": unix.CAP_SETPCAP, "SETUID": unix.CAP_SETUID, "SYS_ADMIN": unix.CAP_SYS_ADMIN, "SYS_BOOT": unix.CAP_SYS_BOOT,
	"SYS_CHROOT": unix.CAP_SYS_CHROOT, "SYS_MODULE": unix.CAP_SYS_MODULE, "SYS_NICE": unix.CAP_SYS_NICE,
	"SYS_PACCT": unix.CAP_SYS_PACCT, "SYS_PTRACE": unix.CAP_SYS_PTRACE, "SYS_RAWIO": unix.CAP_SYS_RAWIO,
	"SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "SYS_TIME": unix.CAP_SYS_TIME, "SYS_TTY_CONFIG": unix.CAP_SYS_TTY_CONFIG,
	"SYSLOG": unix.CAP_SYSLOG, "WAKE_ALARM": unix.CAP_WAKE_ALARM,
}

// PodCapabilities are what Kubernetes' container runtimes give a container that asks for nothing.
var PodCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
	"SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// CapabilitySet turns names, with or without "CAP_", into the set that Bounds holds: base, plus add, minus drop.
// "ALL" in add or drop stands for every capability.
func CapabilitySet(base, add, drop []string) (uint64, error) {
	from, err := bits(base)
	if err != nil {
		return 0, err
	}
	plus, err := bits(add)
	if err != nil {
		return 0, err
	}
	minus, err := bits(drop)
	if err != nil {
		return 0, err
	}
	if minus == ^uint64(0) {
		return plus, nil // Kubernetes' idiom: drop ALL, add a few
	}
	return (from | plus) &^ minus, nil
}

func bits(names []string) (uint64, error) {
	var set uint64
	for _, name := range names {
		name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		if name == "ALL" {
			return ^uint64(0), nil
		}
		n, ok := capabilities[name]
		if !ok {
			return 0, fmt.Errorf("capability %q is not known", name)
		}
		set |= 1 << n
	}
	return set, nil
}
