// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// asks is a container that makes one call and ends with its outcome.
func asks(name, target string) corev1.Container {
	return corev1.Container{Name: name, Command: workload.Command(target, workload.Options{Timeout: world.Budget.Propagation})}
}

// running gives containers what those of a workload have besides their command.
func running(like corev1.Container, list ...corev1.Container) []corev1.Container {
	for i := range list {
		c := like
		c.Name, c.Command, c.Ports, c.ReadinessProbe = list[i].Name, list[i].Command, nil, nil
		list[i] = c
	}
	return list
}

var _ = Describe("pods that end", func() {
	// istio/istio#53271, #57674, #60969; sidecars keep a Job's pod from ever completing.
	It("complete, though they call through the mesh first thing and last thing", Label("TR-18", "LC-10"), func(ctx SpecContext) {
		w := shared()
		target := fmt.Sprintf("http://cart.shop:%d", 80)
		base := pod(w, "errand", nil)
		app := base.Spec.Containers[0]
		base.Spec.InitContainers = running(app, asks("first", target))
		base.Spec.Containers = running(app, asks("work", target))
		base.Spec.RestartPolicy = corev1.RestartPolicyNever
		job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "errand"}, Spec: batchv1.JobSpec{Template: template(base), BackoffLimit: new(int32)}}
		cron := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "errands"}}
		cron.Spec.Schedule, cron.Spec.ConcurrencyPolicy, cron.Spec.JobTemplate.Spec = "@every 5s", batchv1.ForbidConcurrent, job.Spec
		began := time.Now()
		apply(ctx, w, job, cron)
		Eventually(func(ctx SpecContext) (int32, error) {
			j, err := get(ctx, w, &batchv1.Job{ObjectMeta: job.ObjectMeta})
			Expect(j.Status.Failed).To(BeZero(), "the first packet at once waits, and does not fail")
			return j.Status.Succeeded, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(Equal(int32(1)))
		pods := podsOf(ctx, w, "errand")
		Expect(pods).NotTo(BeEmpty())
		entry, err := w.WaitEntry(ctx, pods[0].Node, began, nameOfSource(pods[0].Name))
		Expect(err).NotTo(HaveOccurred(), "its calls went through its ztunnel")
		Expect(entry.Record.Src.Identity).To(Equal(expect.Identity(pods[0])))

		By("control: a Job whose call is refused fails")
		refused := pod(w, "refused", nil)
		refused.Spec.Containers = running(app, asks("work", "http://cart.shop:1"))
		refused.Spec.RestartPolicy = corev1.RestartPolicyNever
		failing := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "refused"}, Spec: batchv1.JobSpec{Template: template(refused), BackoffLimit: new(int32)}}
		apply(ctx, w, failing)
		Eventually(func(ctx SpecContext) (int32, error) {
			j, err := get(ctx, w, &batchv1.Job{ObjectMeta: failing.ObjectMeta})
			return j.Status.Failed, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(Equal(int32(1)))

		By("the CronJob's Job")
		Eventually(func(ctx SpecContext) (*metav1.Time, error) {
			c, err := get(ctx, w, &batchv1.CronJob{ObjectMeta: cron.ObjectMeta})
			return c.Status.LastSuccessfulTime, err
		}).WithContext(ctx).WithTimeout(world.Budget.LongSpec).ShouldNot(BeNil())
	}, SpecTimeout(2*world.Budget.LongSpec))

	It("may call through the mesh while they stop", Label("TR-18"), func(ctx SpecContext) {
		w := shared()
		p := pod(w, "farewell", func(p *corev1.Pod) {
			grace := int64(10)
			p.Spec.TerminationGracePeriodSeconds = &grace
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{
				Command: workload.Command("http://cart.shop/farewell", workload.Options{}),
			}}}
		})
		began := time.Now()
		Expect(w.Apply(ctx, p)).To(Succeed())
		gone := enrolled(ctx, w, "shop", p.Name)
		Expect(w.Delete(ctx, p)).To(Succeed())
		entry, err := w.WaitEntry(ctx, gone.Node, began, nameOfSource(gone.Name))
		Expect(err).NotTo(HaveOccurred())
		Expect(entry.Record.Src.Identity).To(Equal(expect.Identity(gone)))
	}, SpecTimeout(world.Budget.Spec))

	// istio/istio#51429: the terminated pod's address stayed enrolled, and was another pod's next.
	It("leave their address to the next pod, inside the mesh or not", Label("LC-11"), func(ctx SpecContext) {
		w := shared()
		done := pod(w, "done", func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			p.Spec.Containers = running(p.Spec.Containers[0], corev1.Container{Name: "work", Command: []string{topologies.WorkloadBinary, "look", "/"}})
		})
		apply(ctx, w, done)
		Eventually(func(ctx SpecContext) (corev1.PodPhase, error) {
			now, err := get(ctx, w, &corev1.Pod{ObjectMeta: done.ObjectMeta})
			return now.Status.Phase, err
		}).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(Equal(corev1.PodSucceeded))
		_, err := w.WaitPod(ctx, lab.PodRef{Namespace: "shop", Name: "done"}, func(p lab.PodInfo) bool { return !p.Enrolled })
		Expect(err).NotTo(HaveOccurred(), "what has ended is in no mesh")
		ended, err := w.Find(ctx, lab.PodRef{Namespace: "shop", Name: "done"})
		Expect(err).NotTo(HaveOccurred())

		heir := inherit(ctx, w, ended)
		Expect(heir.IPs).To(ContainElement(BeElementOf(ended.IPs)), "control: it has the address")
		web := w.Pod("shop/mobile")
		Eventually(func(ctx SpecContext) string { return observe(ctx, w, web, url("http", heir, portHTTP)).To.Name }).
			WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(Equal(heir.Name))
		Expect(observe(ctx, w, web, url("http", heir, portHTTP))).To(expect.PlainOutbound())
	}, SpecTimeout(world.Budget.LongSpec))
})

// inherit makes a pod outside the mesh on the node of one that has ended, and sees to it that it gets its address: the allocator
// goes round its range, so it is told that the address before was its last.
func inherit(ctx SpecContext, w *world.World, ended lab.PodInfo) lab.PodInfo {
	GinkgoHelper()
	const last = "/run/cni-ipam-state/nodenet/last_reserved_ip.0"
	files := openNode(ctx, w, ended.Node)
	if !files.has(ctx, last) {
		Skip("addresses: the node's allocator is not host-local, so none can be handed on")
	}
	files.write(ctx, last, ended.IPs[0].Prev().String())
	p := pod(w, "heir", func(p *corev1.Pod) {
		p.Spec.NodeName = ended.Node
		p.Labels[mesh.LabelDataplaneMode] = mesh.ModeNone
	})
	apply(ctx, w, p)
	heir, err := w.WaitPod(ctx, lab.PodRef{Namespace: "shop", Name: p.Name}, func(p lab.PodInfo) bool { return p.Ready })
	Expect(err).NotTo(HaveOccurred())
	return heir
}

// nameOfSource accepts the record of a call that a pod made.
func nameOfSource(name string) func(telemetry.Entry) bool {
	return func(e telemetry.Entry) bool { return e.Record.Src.Name == name }
}

func podsOf(ctx context.Context, w *world.World, app string) []lab.PodInfo {
	GinkgoHelper()
	all, err := w.Pods(ctx)
	Expect(err).NotTo(HaveOccurred())
	return slices.DeleteFunc(all, func(p lab.PodInfo) bool { return p.Labels["app"] != app })
}

func names(pods []lab.PodInfo) []string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return out
}
