// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("resources that run out", func() {
	// A ztunnel serves every pod of its node: what one pod uses up, all of them miss (istio/ztunnel#1630).
	It("lives on without free descriptors, and serves again once there are some", world.OwnLab, Label("FI-03"), func(ctx SpecContext) {
		l := twoNodes(ctx, lab.CapProcess)
		zt := l.Daemon("node2", lab.DaemonZtunnel)
		before := alive(ctx, zt)
		kept := start(ctx, l, "shop/web", "shop/cart", exchanging)
		Eventually(l.OpenTunnels).WithContext(ctx).WithArguments("node2").WithTimeout(world.Budget.Evidence).Should(BeNumerically(">", 0))
		limit(ctx, zt, 12)

		many := start(ctx, l, "plain/batch", "shop/cart", crowd(40))
		Eventually(logged).WithContext(ctx).WithArguments(l, "node2", unix.EMFILE.Error()).WithTimeout(world.Budget.Propagation).
			Should(BeTrue(), "the log says what ran out")
		more := []*world.Flow{many}
		Eventually(func(ctx SpecContext) (bool, error) { // what was in use for a moment when the crowd came is another's now
			ok, err := works(ctx, l, "plain/batch", "shop/cart", refusal)
			if ok {
				more = append(more, start(ctx, l, "plain/batch", "shop/cart", crowd(2)))
			}
			return ok, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeFalse(), "control: there is none left for another")
		moves(ctx, l, "shop/cart")
		for _, f := range more {
			f.Stop()
		}
		Eventually(works).WithContext(ctx).WithArguments(l, "plain/batch", "shop/cart", world.Budget.Call).WithTimeout(world.Budget.Propagation).
			Should(BeTrue(), "with the crowd gone, the low limit is no hindrance")
		unhurt(kept)
		Expect(alive(ctx, zt)).To(Equal(before), "the process is the one from before")
	}, SpecTimeout(world.Budget.Spec))

	// The proxy connects to the application from the client's own address, so each client has as many connections to a port as the pod has
	// local ports (istio/istio#52260).
	It("refuses for want of a local port, and nobody who has one", world.OwnLab, Label("FI-03"), func(ctx SpecContext) {
		l := borrowed(ctx)
		const ports = 16
		another(ctx, l, "narrow", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{
				{Name: "net.ipv4.ip_local_port_range", Value: fmt.Sprintf("62000 %d", 62000+ports-1)}, // no client chooses one of those
				{Name: "net.ipv4.tcp_tw_reuse", Value: "1"},                                           // or a port would come back only after a minute
			}}
		})
		began := time.Now()
		clients := []string{"plain/batch", "shop/web"} // in plain text and by a tunnel
		var first []*world.Flow
		for _, from := range clients {
			first = append(first, start(ctx, l, from, "shop/narrow", crowd(ports/2)))
		}
		Eventually(l.OpenTunnels).WithContext(ctx).WithArguments("node2").WithTimeout(world.Budget.Evidence).Should(BeNumerically(">=", ports))
		for _, from := range clients {
			o := crowd(2 * ports) // of which each that has a port keeps it until the others have been refused
			res, err := l.Call(ctx, l.Pod(from).PodRef, url(l, "tcp", "shop/narrow", 9000), o)
			Expect(err).NotTo(HaveOccurred())
			Expect(res.Failed).To(Equal(2*ports-ports/2), "%s: half of the ports were free", from)
			e, err := l.WaitEntry(ctx, "node2", began, func(e telemetry.Entry) bool {
				return e.Record.Src.Addr.Addr().Unmap() == l.Pod(from).Addr(false) && strings.Contains(e.Error, unix.EADDRNOTAVAIL.Error())
			})
			Expect(err).NotTo(HaveOccurred(), "from %s", from)
			Expect(e.Record.Flags).To(Equal(telemetry.FlagConnect))
		}
		for i, from := range clients {
			Expect(first[i].Finish().Failed).To(BeZero(), "those who had a port kept it")
			Eventually(works).WithContext(ctx).WithArguments(l, from, "shop/narrow", world.Budget.Call).WithTimeout(world.Budget.Propagation).
				Should(BeTrue(), "control: with ports to choose from, the next connection is served")
		}
	}, SpecTimeout(world.Budget.Spec))

	// The limit is the host's and counts each namespace for itself: this pod's table is full, nobody else's.
	It("keeps open connections while the pod's conntrack table is full, and takes new ones after", world.OwnLab, Label("FI-03"), func(ctx SpecContext) {
		l := borrowed(ctx)
		full := another(ctx, l, "full", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
		})
		const most = 1 << 19
		kept := start(ctx, l, "shop/web", "shop/full", exchanging)
		Eventually(l.OpenTunnels).WithContext(ctx).WithArguments("node2").WithTimeout(world.Budget.Evidence).Should(BeNumerically(">", 0))
		began := time.Now()
		took, empty := fill(ctx, l, full, most)
		if took == most {
			Skip(fmt.Sprintf("this host's limit (nf_conntrack_max) is above %d connections: filling a table takes too much memory", most))
		}
		AddReportEntry("conntrack", fmt.Sprintf("%d connections filled the pod's table in %s", took, time.Since(began).Round(time.Millisecond)))
		Expect(works(ctx, l, "plain/batch", "shop/full", refusal)).To(BeFalse(), "a full table takes nobody in")
		Expect(works(ctx, l, "shop/web", "shop/cart", world.Budget.Call)).To(BeTrue(), "control: other pods of the node have tables of their own")
		moves(ctx, l, "shop/full")
		empty()
		Eventually(works).WithContext(ctx).WithArguments(l, "plain/batch", "shop/full", world.Budget.Call).WithTimeout(world.Budget.Propagation).
			Should(BeTrue(), "once what filled it is gone")
		unhurt(kept)
	}, SpecTimeout(world.Budget.Spec))
})

// crowd are n connections that are there all at once, until they are stopped or, if nobody can, until all were answered or
// refused.
func crowd(n int) workload.Options {
	return workload.Options{Count: n, Concurrency: n, Hold: true, Timeout: world.Budget.Spec}
}

// exchanging is one connection that is used all the time.
var exchanging = workload.Options{KeepOpen: true, Interval: 50 * time.Millisecond, Size: 100, Timeout: world.Budget.Call}

func start(ctx SpecContext, l *world.World, from, to string, o workload.Options) *world.Flow {
	GinkgoHelper()
	return l.Begin(ctx, from, url(l, "tcp", to, 9000), o)
}

// unhurt ends a connection that was used all the time, and was one.
func unhurt(f *world.Flow) {
	GinkgoHelper()
	res := f.Finish()
	Expect(res.Failed).To(BeZero(), "the connection that was there before: %v", res.Errors)
	Expect(res.OK).To(BeNumerically(">", 1))
	for _, c := range res.Calls[1:] {
		Expect(c.Reused).To(BeTrue(), "another connection had to be opened")
	}
}

// moves waits until the connection of web to a pod has carried something from now on.
func moves(ctx SpecContext, l *world.World, to string) {
	GinkgoHelper()
	carried := func(ctx SpecContext) (n uint64, err error) {
		web, prefix := l.Pod("shop/web"), l.Pod(to).Addr(false).String()+":"
		d, err := l.ConfigDump(ctx, web.Node)
		for _, c := range d.WorkloadState[web.UID].Connections.Outbound {
			if strings.HasPrefix(c.ActualDst, prefix) {
				n += c.BytesRecv
			}
		}
		return n, err
	}
	before, err := carried(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(before).To(BeNumerically(">", 0), "control: it is there")
	Eventually(carried).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(BeNumerically(">", before), "the connection that was there before stands still")
}

// fill puts as many connections into a pod's table as it takes, and returns how many those were and what takes them out.
func fill(ctx SpecContext, l *world.World, pod lab.PodInfo, most int) (took int, empty func()) {
	GinkgoHelper()
	in, end, err := os.Pipe()
	Expect(err).NotTo(HaveOccurred())
	out, printed := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		defer in.Close()
		exit, err := l.Exec(ctx, pod.PodRef, []string{"workload", "fill", fmt.Sprint(most)}, lab.Stdio{In: in, Out: printed})
		if err == nil && exit != 0 {
			err = fmt.Errorf("exit %d", exit)
		}
		_ = printed.CloseWithError(io.EOF)
		ended <- err
	}()
	empty = sync.OnceFunc(func() {
		GinkgoHelper()
		_ = end.Close()
		Expect(<-ended).To(Succeed())
	})
	DeferCleanup(empty)
	_, err = fmt.Fscanln(out, &took)
	Expect(err).NotTo(HaveOccurred())
	return took, empty
}

// alive is when the daemon's process began; it must run.
func alive(ctx SpecContext, d lab.Daemon) time.Time {
	GinkgoHelper()
	s, err := d.Status(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(s.Running).To(BeTrue())
	return s.Started
}

// refusal is how long somebody waits who is not to be answered.
const refusal = time.Second

// works makes a connection of its own.
func works(ctx SpecContext, l *world.World, from, to string, timeout time.Duration) (bool, error) {
	res, err := l.Call(ctx, l.Pod(from).PodRef, url(l, "tcp", to, 9000), workload.Options{Timeout: timeout})
	return res.OK == 1, err
}

func logged(ctx SpecContext, l *world.World, node, text string) (bool, error) {
	r, err := l.Daemon(node, lab.DaemonZtunnel).Logs(ctx, time.Time{})
	if err != nil {
		return false, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return strings.Contains(string(b), text), err
}

// limit leaves a daemon so many descriptors more than it has open, and gives it its own limit back when the scenario ends. A limit at start would be no use:
// a Go program raises it to the hard one.
func limit(ctx SpecContext, d lab.Daemon, more uint64) {
	GinkgoHelper()
	s, err := d.Status(ctx)
	Expect(err).NotTo(HaveOccurred())
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.PID))
	if err != nil {
		Skip(fmt.Sprintf("a daemon's descriptors cannot be counted here: %v", err))
	}
	var was unix.Rlimit
	Expect(unix.Prlimit(s.PID, unix.RLIMIT_NOFILE, nil, &was)).To(Succeed())
	Expect(unix.Prlimit(s.PID, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open)) + more, Max: was.Max}, nil)).To(Succeed())
	DeferCleanup(func() { _ = unix.Prlimit(s.PID, unix.RLIMIT_NOFILE, &was, nil) })
}

// another is a server like cart, but for what change says.
func another(ctx SpecContext, l *world.World, name string, change func(*corev1.Pod)) lab.PodInfo {
	GinkgoHelper()
	p := l.ClonePod("shop/cart", name)
	p.Labels = map[string]string{"app": name}
	change(p)
	info, err := l.Join(ctx, p)
	Expect(err).NotTo(HaveOccurred())
	return info
}
