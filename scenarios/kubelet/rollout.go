// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// notice is how long a pod that is to go serves on, so that those who call it hear of it: what Kubernetes' documentation
// advises for every rollout, with a mesh or without.
const notice = 5

var _ = Describe("a Deployment's rollout under load", func() {
	// istio/istio#58514: ztunnel went on sending to pods whose container had ended.
	It("costs no call from the mesh, nor from outside it", Label("LC-08"), func(ctx SpecContext) {
		w := shared()
		base := pod(w, "rolling", func(p *corev1.Pod) {
			grace := int64(5 * notice)
			p.Spec.TerminationGracePeriodSeconds = &grace
			p.Spec.Containers[0].ReadinessProbe = everySecond(probes["http"], 1)
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: notice}}}
		})
		const replicas = 3
		d := rolling(base, replicas)
		apply(ctx, w, service("rolling", nil), d)
		updated(ctx, w, d, replicas)
		url := fmt.Sprintf("http://rolling.shop:%d", portHTTP)
		for _, from := range []string{"shop/web", "plain/batch"} {
			Eventually(func(ctx SpecContext) bool { return observe(ctx, w, w.Pod(from), url).Call.OK }).
				WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue(), "until the name is known")
		}

		o := workload.Options{Interval: 20 * time.Millisecond, Timeout: 5 * time.Second}
		flows := []*world.Flow{w.Begin(ctx, "shop/web", url, o), w.Begin(ctx, "plain/batch", url, o)}
		first := podsOf(ctx, w, "rolling")
		d.Spec.Template.Annotations = map[string]string{"ambientlab.dev/rollout": "2"}
		Expect(w.Apply(ctx, d)).To(Succeed())
		updated(ctx, w, d, replicas)
		Eventually(podsOf).WithContext(ctx).WithArguments(w, "rolling").WithTimeout(world.Budget.Propagation).
			Should(And(HaveLen(replicas), Not(ContainElement(HaveField("Name", BeElementOf(names(first)))))), "control: all pods are new ones")
		for _, f := range flows {
			res := f.Finish()
			Expect(res.OK).To(BeNumerically(">", 50), "control: the load of %s ran", f.From)
			Expect(res.Failed).To(BeZero(), "of %s: %v", f.From, res.Errors)
		}
	}, SpecTimeout(world.Budget.LongSpec))
})

// rolling is a Deployment that never has fewer pods than it should.
func rolling(base *corev1.Pod, replicas int32) *appsv1.Deployment {
	none, one := intstr.FromInt32(0), intstr.FromInt32(1)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: base.Namespace, Name: base.Name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: selector(base), Template: template(base),
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none, MaxSurge: &one}},
		},
	}
}

// updated waits until a Deployment has its pods of the latest template, and no others.
func updated(ctx SpecContext, w *world.World, d *appsv1.Deployment, replicas int32) {
	GinkgoHelper()
	Eventually(func(ctx SpecContext) (appsv1.DeploymentStatus, error) {
		now, err := get(ctx, w, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name}})
		if now.Status.ObservedGeneration < now.Generation {
			return appsv1.DeploymentStatus{}, err
		}
		return now.Status, err
	}).WithContext(ctx).WithTimeout(world.Budget.LongSpec).Should(And(
		HaveField("UpdatedReplicas", replicas), HaveField("AvailableReplicas", replicas), HaveField("Replicas", replicas)))
}
