// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// memoryGroups are where a control group that bounds memory can be made, and the names of its bounds: version 2, then 1.
var memoryGroups = []struct{ dir, limit, swap string }{
	{"/sys/fs/cgroup", "memory.max", "memory.swap.max"},
	{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
}

// starve gives a process a control group of its own in which it cannot grow, and skips the scenario, with the reason, where that
// is not to be had.
func starve(pid int) {
	GinkgoHelper()
	if os.Getuid() != 0 {
		Skip("a memory limit needs a control group, and making one needs root")
	}
	const little = "524288"
	for _, g := range memoryGroups {
		dir := filepath.Join(g.dir, fmt.Sprintf("ambientlab-%d", pid))
		if _, err := os.Stat(filepath.Join(g.dir, "cgroup.procs")); err != nil {
			continue // no control groups of that version there
		}
		Expect(os.Mkdir(dir, 0o755)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			Eventually(os.Remove).WithArguments(dir).WithContext(ctx).WithTimeout(world.Budget.Down).Should(Succeed(), "its process has ended")
		}, NodeTimeout(world.Budget.Down))
		if set(dir, g.limit, little) != nil {
			continue // the controller is not switched on there
		}
		_ = set(dir, g.swap, little) // where swap is counted
		Expect(set(dir, "cgroup.procs", strconv.Itoa(pid))).To(Succeed())
		return
	}
	Skip("this host has no control groups for memory, or lets nobody make one")
}

// set writes one of a control group's files, and makes none.
func set(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

var _ = Describe("a ztunnel that runs out of memory", func() {
	It("is killed, lets nothing through meanwhile, and is back within two seconds", world.OwnLab, Label("LC-03"), func(ctx SpecContext) {
		world.Shared().Needs(lab.CapSignal, lab.CapStopped)
		l, err := world.Start(ctx, "two-nodes", lab.UpOptions{})
		Expect(err).NotTo(HaveOccurred())
		web, url, ledger := l.Pod("shop/web"), at(l.Pod("shop/cart"), "http", 8080), at(l.Pod("plain/ledger"), "http", 8080)
		zt := l.Daemon(web.Node, lab.DaemonZtunnel)
		status, err := zt.Status(ctx)
		Expect(err).NotTo(HaveOccurred())
		within := patience(ctx, l, "shop/web", url)
		starve(status.PID)
		load := l.Begin(ctx, "shop/web", at(l.Pod("shop/cart"), "tcp", 9000), workload.Options{
			Size: 1 << 20, Concurrency: 8, Timeout: time.Second,
		})
		Eventually(func(ctx SpecContext) (lab.Status, error) { return zt.Status(ctx) }).WithContext(ctx).
			WithTimeout(world.Budget.Propagation).Should(HaveField("Running", false))
		load.Finish()
		status, err = zt.Status(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(status.ExitCode).To(Equal(128+int(syscall.SIGKILL)), "by the kernel")

		res, err := l.Call(ctx, web.PodRef, ledger, workload.Options{Count: 10, Timeout: time.Second})
		Expect(err).NotTo(HaveOccurred())
		Expect(res.OK).To(BeZero(), "a captured pod escaped its proxy")
		plain, err := l.Call(ctx, l.Pod("plain/batch").PodRef, ledger, workload.Options{Count: 10, Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred())
		Expect(plain.OK).To(Equal(10), "control: nothing else stood between them: %v", plain.Errors)

		Expect(zt.Start(ctx)).To(Succeed())
		Expect(zt.Ready(ctx)).To(Succeed())
		Eventually(func(ctx SpecContext) (bool, error) {
			res, err := l.Call(ctx, web.PodRef, url, workload.Options{Timeout: back})
			return res.OK == 1, err
		}).WithContext(ctx).WithTimeout(within).Should(BeTrue())
		observed(ctx, l, "shop/web", url)
	}, SpecTimeout(world.Budget.LongSpec))
})
