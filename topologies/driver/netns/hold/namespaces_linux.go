// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// enterNamespaces makes this process's new namespaces usable.
func enterNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return refused("make the file tree private", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return refused("mount proc in a new PID namespace", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return refused("raise loopback", err)
	}
	// Before any other link exists: duplicate address detection costs 1.65 s per link.
	for _, name := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return refused("set a net sysctl", err)
		}
	}
	return nil
}

// probe tries what a lab needs and has not been tried yet: a further namespace and a rule in it.
func probe() error {
	ns, err := netns.New()
	if err != nil {
		return refused("make a network namespace", err)
	}
	defer ns.Close()
	if err := probeRule(ns); err != nil {
		return refused("add a netfilter rule", err)
	}
	return nil
}

func probeRule(ns *netns.NS) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns.Fd()))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "probe"})
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
	return c.Flush()
}

// refused adds to a refusal which setting of the host is behind it, as far as one can tell.
func refused(what string, err error) error {
	if why := reason(err); why != "" {
		return fmt.Errorf("%s: %w: %s", what, err, why)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func reason(err error) string {
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS)
	switch {
	case denied && sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "AppArmor takes the capabilities of ordinary users' namespaces (Ubuntu since 23.10): " +
			"`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or run as root"
	case denied && seccompFiltered():
		return "a seccomp profile or a masked /proc refuses, as in most containers: run it with " +
			"`--privileged`, or `--security-opt seccomp=unconfined --security-opt systempaths=unconfined --cap-add ALL`"
	case denied && maskedProc():
		return "parts of /proc are covered, as in most containers: run it with `--privileged` or `--security-opt systempaths=unconfined`"
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		return "the kernel has no nf_tables with nat: load it with `modprobe -a nf_tables nft_chain_nat`"
	case errors.Is(err, unix.ENOSPC):
		return "a limit on namespaces is reached: raise `sysctl user.max_net_namespaces`"
	case denied:
		return "run as root, or allow unprivileged user namespaces"
	}
	return ""
}

func sysctl(name string) string {
	value, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(value))
}

func seccompFiltered() bool {
	status, err := os.ReadFile("/proc/thread-self/status")
	return err == nil && strings.Contains(string(status), "\nSeccomp:\t2")
}

// maskedProc reports whether something is mounted upon files of the host's /proc.
func maskedProc() bool {
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], "/proc/") && !strings.HasPrefix(fields[4], "/proc/sys/fs/binfmt_misc") {
			return true
		}
	}
	return false
}
