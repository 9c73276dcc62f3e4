// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// bound is the condition that says whether a service has the waypoint that it asks for.
const bound = "istio.io/WaypointBound"

var _ = Describe("a service that asks for a waypoint that is not there", func() {
	It("is called without, and says so", world.OwnLab, Label("W7-06"), func(ctx SpecContext) {
		l := start(ctx)
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "judged", Labels: map[string]string{mesh.LabelUseWaypoint: "nobody"}}}
		s.Spec.Selector = map[string]string{"app": "cart"}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}
		Expect(l.Establish(ctx, s)).To(Succeed())
		Eventually(l.Condition).WithContext(ctx).WithArguments(s, bound).WithTimeout(world.Budget.Propagation).Should(And(
			HaveField("Status", metav1.ConditionFalse), HaveField("Message", ContainSubstring("shop/nobody"))))
		now := &corev1.Service{ObjectMeta: s.ObjectMeta}
		Expect(l.Get(ctx, now)).To(Succeed())
		url := fmt.Sprintf("http://%s", net.JoinHostPort(now.Spec.ClusterIP, "80"))
		obs, err := l.Observe(ctx, l.Pod("shop/web"), url, workload.Options{Timeout: world.Budget.Call})
		Expect(err).NotTo(HaveOccurred())
		Expect(obs).To(expect.Tunnelled())

		By("control: one that asks for none has nothing to say")
		s.Labels = map[string]string{mesh.LabelUseWaypoint: mesh.ModeNone}
		Expect(l.Establish(ctx, s)).To(Succeed())
		Eventually(l.Status).WithContext(ctx).WithArguments(s).WithTimeout(world.Budget.Propagation).Should(BeEmpty())
	}, SpecTimeout(world.Budget.Spec))
})
