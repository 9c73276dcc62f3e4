// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/reports/schema"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var _ = Describe("a lab that one looks into", func() {
	It("shows workloads, certificates and open connections with istioctl's columns", Label("OB-04"), func(ctx SpecContext) {
		web, stock := w.Pod("shop/web"), w.Pod("shop/stock")
		Expect(command(ctx, "zc", "workloads", "shop/stock")).To(MatchRegexp(`(?m)^NAMESPACE +POD NAME +ADDRESS +NODE +WAYPOINT +PROTOCOL\nshop +stock +%s +\S+ +None +HBONE\n$`,
			regexp.QuoteMeta(stock.Addr(false).String()))) // the node by the cluster's name
		Expect(command(ctx, "zc", "workloads")).To(MatchRegexp(`(?m)^plain +ledger +.* TCP$`), "control: a pod outside the mesh")

		open, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			_, err := w.Call(open, web.PodRef, fmt.Sprintf("tcp://%s", netip.AddrPortFrom(stock.Addr(false), 9000)), workload.Options{Silent: world.Budget.Spec, Timeout: 2 * world.Budget.Spec})
			done <- err
		}()
		outbound := fmt.Sprintf(`(?m)^web.shop +Outbound +web.shop:\d+ +stock.shop:15008 +stock.shop:9000 +HBONE .*%s +%s$`,
			regexp.QuoteMeta(expect.Identity(web).String()), regexp.QuoteMeta(expect.Identity(stock).String()))
		Eventually(command).WithContext(ctx).WithArguments("zc", "connections", "shop/web", "-o", "wide").WithTimeout(world.Budget.Evidence).Should(MatchRegexp(outbound))
		Eventually(command).WithContext(ctx).WithArguments("zc", "connections", "shop/stock").WithTimeout(world.Budget.Evidence).
			Should(MatchRegexp(`(?m)^stock.shop +Inbound +stock.shop:9000 +web.shop:\d+ .*HBONE$`))
		stop()
		Expect(<-done).To(MatchError(context.Canceled))
		Eventually(command).WithContext(ctx).WithArguments("zc", "connections", "shop/web").WithTimeout(world.Budget.Evidence).
			ShouldNot(ContainSubstring("stock.shop:9000"), "control: closed connections leave the list")

		certificates := command(ctx, "zc", "certificates", web.Node)
		Expect(certificates).To(MatchRegexp(`(?m)^%s +Leaf +Available +true `, regexp.QuoteMeta(expect.Identity(web).String())))
		Expect(certificates).NotTo(ContainSubstring(expect.Identity(stock).String()), "control: a node holds no identity of another's pods")
	}, SpecTimeout(world.Budget.Spec))

	It("is dumped without a key or a token", Label("OB-04"), func(ctx SpecContext) {
		token, err := w.Output(ctx, w.Pod("shop/web").PodRef, "workload", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
		Expect(err).NotTo(HaveOccurred())
		Expect(token).To(HavePrefix("eyJ"), "control: there is a token to be found")
		dir := filepath.Join(GinkgoT().TempDir(), "dump")
		command(ctx, "dump", dir)
		for _, name := range []string{
			lab.IndexName, "topology.yaml", "pods/shop.web.txt", "nodes/node1.txt", "daemons/ztunnel.node1/config_dump.json", "daemons/ztunnel.node1/metrics.txt",
			"daemons/control/snapshot.json", "daemons/cni-agent.node2/goroutines.txt", "logs/ztunnel.node1.log",
		} {
			Expect(filepath.Join(dir, filepath.FromSlash(name))).To(BeARegularFile())
		}
		Expect(filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			for _, secret := range [][]byte{bytes.TrimSpace(token), []byte("PRIVATE KEY")} {
				if bytes.Contains(text, secret) {
					return fmt.Errorf("%s holds a secret", path)
				}
			}
			return err
		})).To(Succeed())
	}, SpecTimeout(world.Budget.Spec))

	It("draws who talked to whom", Label("OB-04"), func(ctx SpecContext) {
		since := time.Now().Format(time.RFC3339Nano)
		Expect(observe(ctx, "http://stock.shop:80", workload.Options{})).To(expect.Tunnelled())
		plain, err := w.Observe(ctx, w.Pod("plain/batch"), "http://stock.shop:80", workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(plain).To(expect.PlainInbound())
		deny(ctx, "only-drawn", "stock", "9001")
		edge := func(from string, p schema.GraphProtocol) (found schema.GraphEdge) {
			GinkgoHelper()
			Eventually(func(g Gomega, ctx SpecContext) {
				graph, err := schema.DecodeGraph(strings.NewReader(command(ctx, "graph", "-o", "json", "--since", since)))
				g.Expect(err).NotTo(HaveOccurred())
				i := slices.IndexFunc(graph.Edges, func(e schema.GraphEdge) bool {
					return e.From == "workload/"+from && e.To == "workload/shop/stock" && e.Protocol == p
				})
				g.Expect(i).To(BeNumerically(">=", 0), "%s to shop/stock, %s, in %+v", from, p, graph.Edges)
				found = graph.Edges[i]
			}).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(Succeed())
			return found
		}
		tunnel := edge("shop/web", schema.GraphHBONE)
		Expect(tunnel.Ports).To(ContainElement(8080))
		Expect(tunnel.SourceIdentity).To(Equal(expect.Identity(w.Pod("shop/web")).String()))
		Expect(tunnel.BytesSent).To(BeNumerically(">", 0))
		Expect(edge("plain/batch", schema.GraphPlain).SourceIdentity).To(BeEmpty(), "control: a pod outside the mesh")
		Expect(edge("shop/web", schema.GraphDenied)).To(And(HaveField("Policies", []string{"shop/only-drawn"}), HaveField("Ports", []int{9001})))
		Expect(command(ctx, "graph", "--svg", "--since", since)).To(And(HavePrefix("<svg"), ContainSubstring(">stock<")))
	}, SpecTimeout(world.Budget.Spec))

	It("serves debug pages whose links work, on loopback alone", Label("OB-04"), func(ctx SpecContext) {
		link := regexp.MustCompile(`href="(/[^"]*)"`)
		for _, d := range []struct{ node, name string }{{"node1", lab.DaemonZtunnel}, {"node1", lab.DaemonCNIAgent}, {"", lab.DaemonControl}} {
			page := func(path, accept string) (string, error) {
				text, err := w.ReadPage(ctx, lab.Page{Node: d.node, Daemon: d.name, Path: path, Accept: accept})
				return string(text), err
			}
			index, err := page("/debug/", "text/html")
			Expect(err).NotTo(HaveOccurred())
			links := link.FindAllStringSubmatch(index, -1)
			Expect(len(links)).To(BeNumerically(">", 12), "%s", d.name)
			for _, l := range links {
				if l[1] == "/debug/pprof/profile" || l[1] == "/debug/pprof/trace" {
					l[1] += "?seconds=0.01"
				}
				_, err := page(l[1], "text/html")
				Expect(err).NotTo(HaveOccurred(), "%s", d.name)
			}
			Expect(page("/debug/process?format=json", "")).To(ContainSubstring(`"goroutines"`))
			_, err = page("/debug/none", "")
			Expect(err).To(MatchError(ContainSubstring(http.StatusText(http.StatusNotFound))), "control: a page that is not there")
		}
		control := w.Now(ctx, "istio-system/istiod").Addr(false)
		closed, err := w.Call(ctx, w.Pod("plain/batch").PodRef, fmt.Sprintf("http://%s/debug/", netip.AddrPortFrom(control, lab.AdminPort(lab.DaemonControl))), workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(closed.First().Class).To(Equal(workload.ClassRefused), "the pages by the pod's address")
		ztunnel := w.Now(ctx, "istio-system/ztunnel-node1").Addr(false)
		metrics, err := w.Call(ctx, w.Pod("plain/batch").PodRef, fmt.Sprintf("http://%s/metrics", netip.AddrPortFrom(ztunnel, lab.MetricsPort(lab.DaemonZtunnel))), workload.Options{})
		Expect(err).NotTo(HaveOccurred())
		Expect(metrics.First().Status).To(Equal(http.StatusOK), "control: a port that is for everyone")
	}, SpecTimeout(world.Budget.Spec))
})

// deny has a policy refuse a port of a pod of namespace shop to web until the scenario ends, and returns once it does.
func deny(ctx context.Context, name, app, port string) {
	GinkgoHelper()
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	p.SetGroupVersionKind(securityv1.SchemeGroupVersion.WithKind("AuthorizationPolicy"))
	p.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
	p.Spec.Action = securityapi.AuthorizationPolicy_DENY
	p.Spec.Rules = []*securityapi.Rule{{To: []*securityapi.Rule_To{{Operation: &securityapi.Operation{Ports: []string{port}}}}}}
	serves := func(ctx context.Context) bool {
		res, err := w.Call(ctx, w.Pod("shop/web").PodRef, fmt.Sprintf("tcp://%s.shop:%s", app, port), workload.Options{})
		return err == nil && res.First().OK
	}
	Expect(w.Apply(ctx, p)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) {
		Expect(w.Delete(ctx, p)).To(Succeed())
		Eventually(serves).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeTrue())
	}, NodeTimeout(world.Budget.Spec))
	Eventually(serves).WithContext(ctx).WithTimeout(world.Budget.Propagation).Should(BeFalse())
}

func command(ctx context.Context, args ...string) string {
	GinkgoHelper()
	out, err := w.Command(ctx, args...)
	Expect(err).NotTo(HaveOccurred())
	return out
}
