// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// setting is a file of a cgroup and what to write into it, by version.
type setting struct{ v1File, v1, v2File, v2 string }

const megabyte = 1 << 20

var _ = Describe("a ztunnel that is confined", func() {
	It("goes on with a twentieth of a processor, slowly", world.OwnLab, Label("FI-03"), func(ctx SpecContext) {
		l := twoNodes(ctx, lab.CapProcess)
		zt := l.Daemon("node2", lab.DaemonZtunnel)
		before := alive(ctx, zt)
		group := confine(ctx, zt, "cpu", setting{"cpu.cfs_quota_us", "5000", "cpu.max", "5000 100000"})
		atOnce(func(from, to string) { call(ctx, l, from, to, 9000, bothWays(4*megabyte)) }) // both sides check every byte
		Expect(group.count("cpu.stat", "nr_throttled")).To(BeNumerically(">", 0), "control: it had to wait for its share")
		Expect(alive(ctx, zt)).To(Equal(before))
	}, SpecTimeout(world.Budget.Spec))

	It("stays within a memory limit under a crowd of connections", world.OwnLab, Label("FI-03"), func(ctx SpecContext) {
		l := twoNodes(ctx, lab.CapProcess)
		zt := l.Daemon("node2", lab.DaemonZtunnel)
		before := alive(ctx, zt)
		// What the process holds by now is not charged to its new group: this is what it may take beside that.
		limit := strconv.Itoa(32 * megabyte)
		group := confine(ctx, zt, "memory", setting{"memory.limit_in_bytes", limit, "memory.max", limit})
		many, err := l.Call(ctx, l.Pod("shop/web").PodRef, url(l, "tcp", "shop/cart", 9000),
			workload.Options{Count: 400, Concurrency: 100, Size: 64 << 10, Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred())
		Expect(many.Failed).To(BeZero(), "%v", many.Errors)
		Expect(group.number("memory.max_usage_in_bytes", "memory.peak")).To(
			And(BeNumerically(">", megabyte), BeNumerically("<=", 32*megabyte)), "control: it did take memory")
		Expect(alive(ctx, zt)).To(Equal(before), "nobody killed it")
	}, SpecTimeout(world.Budget.Spec))
})

// group is a cgroup of the scenario's own.
type group string

// confine puts a daemon's process into a cgroup below the one that it is in, for as long as the scenario runs. Where that cannot be, the scenario is skipped.
func confine(ctx SpecContext, d lab.Daemon, controller string, s setting) group {
	GinkgoHelper()
	status, err := d.Status(ctx)
	Expect(err).NotTo(HaveOccurred())
	if os.Geteuid() != 0 {
		Skip("only root may put a daemon's process into a cgroup")
	}
	was, file, value := filepath.Join("/sys/fs/cgroup", controller, cgroupOf(status.PID, controller)), s.v1File, s.v1
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", controller)); errors.Is(err, fs.ErrNotExist) {
		was, file, value = filepath.Join("/sys/fs/cgroup", cgroupOf(status.PID, "")), s.v2File, s.v2
	}
	g := group(filepath.Join(was, fmt.Sprintf("ambientlab-%d", status.PID)))
	if err := os.Mkdir(string(g), 0o755); err != nil {
		Skip(fmt.Sprintf("no cgroup can be made here: %v", err))
	}
	pid := []byte(strconv.Itoa(status.PID))
	DeferCleanup(func() {
		_ = os.WriteFile(filepath.Join(was, "cgroup.procs"), pid, 0o644) // the process may have ended
		Expect(os.Remove(string(g))).To(Succeed())
	})
	if err := os.WriteFile(filepath.Join(string(g), file), []byte(value), 0o644); err != nil {
		Skip(fmt.Sprintf("controller %s is not to be had in a cgroup here: %v", controller, err))
	}
	Expect(os.WriteFile(filepath.Join(string(g), "cgroup.procs"), pid, 0o644)).To(Succeed())
	return g
}

// cgroupOf is where a process is in a controller's hierarchy (cgroups(7)); "" is version 2's.
func cgroupOf(pid int, controller string) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "/"
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && fields[1] == controller {
			return fields[2]
		}
	}
	return "/"
}

// count is a named number of a file.
func (g group) count(file, name string) int {
	GinkgoHelper()
	text, err := os.ReadFile(filepath.Join(string(g), file))
	Expect(err).NotTo(HaveOccurred())
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			Expect(err).NotTo(HaveOccurred())
			return n
		}
	}
	Fail(fmt.Sprintf("%s says nothing of %s", file, name))
	return 0
}

// number is what stands in the first of the files that is there.
func (g group) number(files ...string) int {
	GinkgoHelper()
	for _, f := range files {
		if text, err := os.ReadFile(filepath.Join(string(g), f)); err == nil {
			n, err := strconv.Atoi(strings.TrimSpace(string(text)))
			Expect(err).NotTo(HaveOccurred())
			return n
		}
	}
	Fail(fmt.Sprintf("none of %v is there", files))
	return 0
}
