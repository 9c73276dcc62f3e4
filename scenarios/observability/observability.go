// SPDX-License-Identifier: Apache-2.0

// Package observability holds the scenarios about what the mesh says of itself: metrics, access log, config dump.
package observability

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/admin"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

var w = world.Shared()

var _ = Describe("metrics", func() {
	It("count connections and bytes on both sides, with Istio's names and labels", Label("OB-01"), func(ctx SpecContext) {
		const size = 100_000
		web, stock := w.Pod("shop/web"), w.Pod("shop/stock")
		obs := observe(ctx, "tcp://stock.shop:9000", workload.Options{Size: size})
		Expect(obs).To(expect.Tunnelled())
		question := workload.AskSeen + "\n"
		answer, err := json.Marshal(obs.Call.Seen) // the server's line, to the byte
		Expect(err).NotTo(HaveOccurred())
		both := map[string]string{
			"source_workload": "web", "source_workload_namespace": "shop", "source_canonical_service": "web", "source_canonical_revision": "v1",
			"source_app": "web", "source_version": "v1", "source_cluster": "Kubernetes",
			"source_principal": expect.Identity(web).String(), "source_region": "lab", "source_zone": "zone-a",
			"destination_workload": "stock", "destination_workload_namespace": "shop", "destination_canonical_service": "stock",
			"destination_canonical_revision": "v1", "destination_app": "stock", "destination_version": "v1", "destination_cluster": "Kubernetes",
			"destination_principal": expect.Identity(stock).String(), "destination_region": "lab", "destination_zone": "zone-b",
			"destination_service": "stock.shop.svc.cluster.local", "destination_service_name": "stock", "destination_service_namespace": "shop",
			"request_protocol": "tcp", "response_flags": "-", "connection_security_policy": "mutual_tls",
		}
		for _, reporter := range []string{"source", "destination"} {
			both["reporter"] = reporter
			for _, name := range []string{world.Opened, world.Closed} {
				Expect(obs.Metrics.Sum(name, both)).To(Equal(1.0), "%s by %s\n%s", name, reporter, obs)
			}
			Expect(obs.Metrics.Sum(world.Received, both)).To(BeEquivalentTo(len(question)+size), "the request, by %s\n%s", reporter, obs)
			Expect(obs.Metrics.Sum(world.Sent, both)).To(BeEquivalentTo(len(answer)+1+size), "the response, by %s\n%s", reporter, obs)
		}
		asUpstream(ctx)
		outside, err := w.Observe(ctx, w.Pod("plain/batch"), "tcp://ledger.plain:9000", workload.Options{Size: size})
		Expect(err).NotTo(HaveOccurred())
		Expect(outside.Call.OK).To(BeTrue())
		Expect(outside.Metrics).To(BeEmpty(), "control: outside the mesh nothing is counted")
	}, SpecTimeout(world.Budget.Spec))
})

var _ = Describe("the access log", func() {
	It("tells of a call that went well, on both sides", Label("OB-02"), func(ctx SpecContext) {
		obs := observe(ctx, "http://stock.shop:80", workload.Options{})
		Expect(obs).To(expect.Tunnelled())
		web, stock := w.Pod("shop/web"), w.Pod("shop/stock")
		for _, e := range []*telemetry.Entry{obs.Outbound, obs.Inbound} {
			Expect(e.Message).To(Equal(telemetry.MessageComplete))
			Expect(e.Level).To(Equal("info"))
			Expect(e.Error).To(BeEmpty())
			Expect(e.Record.Src.Namespace).To(Equal("shop"))
			Expect(e.Record.Src.Cluster).To(Equal("Kubernetes"))
			Expect(e.Record.Service).To(Equal("stock.shop.svc.cluster.local"))
			Expect(e.Record.Dst.Addr).To(Equal(netip.AddrPortFrom(e.Record.HBONEAddr.Addr(), mesh.PortHBONE)))
			Expect(stock.IPs).To(ContainElement(e.Record.HBONEAddr.Addr()))
			Expect(e.Record.HBONEAddr.Port()).To(BeEquivalentTo(8080))
			Expect(web.IPs).To(ContainElement(e.Record.Src.Addr.Addr()))
			Expect(e.Record.BytesSent).To(BeNumerically(">", 0))
			Expect(e.Record.BytesRecv).To(BeNumerically(">", 0))
		}
	}, SpecTimeout(world.Budget.Spec))

	It("tells of an upstream that refuses, on both sides", Label("OB-02"), func(ctx SpecContext) {
		const nobody = 8099
		url := fmt.Sprintf("http://%s", netip.AddrPortFrom(w.Pod("shop/stock").Addr(false), nobody))
		obs := observe(ctx, url, workload.Options{Timeout: world.Budget.Call})
		Expect(obs.Call.OK).To(BeFalse())
		Expect(obs.Inbound).NotTo(BeNil())
		Expect(obs.Inbound.Level).To(Equal("error"))
		Expect(obs.Inbound.Record.Flags).To(Equal(telemetry.FlagConnect), obs.String())
		Expect(obs.Inbound.Error).To(ContainSubstring("refused"))
		Expect(obs.Outbound).NotTo(BeNil())
		Expect(obs.Outbound.Error).To(ContainSubstring("503"))
		Expect(obs.Outbound.Record.Flags).To(Equal(telemetry.FlagConnect))
		Expect(obs.Metrics.Sum(world.Opened, map[string]string{"reporter": "destination"})).To(BeZero())
		Expect(obs).NotTo(expect.Tunnelled(), "control: the matcher for success refuses this")
	}, SpecTimeout(world.Budget.Spec))
})

var _ = Describe("the config dump", func() {
	It("shows what is applied: workloads, services, enrolled pods, certificates", Label("OB-04"), func(ctx SpecContext) {
		Expect(observe(ctx, "http://stock.shop:80", workload.Options{})).To(expect.Tunnelled())
		web, stock, ledger := w.Pod("shop/web"), w.Pod("shop/stock"), w.Pod("plain/ledger")
		d := dump(ctx, web.Node)

		protocols := map[string]string{}
		for _, wl := range d.Workloads {
			protocols[wl.Namespace+"/"+wl.Name] = wl.Protocol
		}
		Expect(protocols).To(HaveKeyWithValue("shop/stock", "HBONE"))
		Expect(protocols).To(HaveKeyWithValue("plain/ledger", "TCP"), "control: a pod outside the mesh is not HBONE")
		Expect(slices.ContainsFunc(d.Services, func(s admin.Service) bool {
			return s.Hostname == "stock.shop.svc.cluster.local" && s.Ports["80"] == 8080 && len(s.Endpoints) == 1
		})).To(BeTrue(), "service stock")

		Expect(d.WorkloadState).To(HaveKey(web.UID))
		Expect(d.WorkloadState[web.UID].State).To(Equal("Up"))
		Expect(d.WorkloadState).NotTo(HaveKey(stock.UID), "control: a pod of another node")
		Expect(d.WorkloadState).NotTo(HaveKey(ledger.UID))

		var cert *admin.Certificates
		for i := range d.Certificates {
			if d.Certificates[i].Identity == expect.Identity(web).String() {
				cert = &d.Certificates[i]
			}
			Expect(d.Certificates[i].Identity).NotTo(Equal(expect.Identity(stock).String()), "a node holds no identity of another's pods")
		}
		Expect(cert).NotTo(BeNil())
		Expect(cert.State).To(Equal("Available"))
		Expect(cert.CertChain).NotTo(BeEmpty())
		Expect(cert.RootCerts).NotTo(BeEmpty())
		pem, err := base64.StdEncoding.DecodeString(cert.CertChain[0].PEM)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(pem)).To(ContainSubstring("BEGIN CERTIFICATE"))
		Expect(string(pem)).NotTo(ContainSubstring("PRIVATE"))
	}, SpecTimeout(world.Budget.Spec))

	It("lists connections while they are open", Label("OB-04"), func(ctx SpecContext) {
		web, stock := w.Pod("shop/web"), w.Pod("shop/stock")
		url := fmt.Sprintf("tcp://%s", netip.AddrPortFrom(stock.Addr(false), 9000))
		open, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			_, err := w.Call(open, web.PodRef, url, workload.Options{Silent: world.Budget.Spec, Timeout: 2 * world.Budget.Spec})
			done <- err
		}()
		outbound := func(g Gomega, ctx SpecContext) {
			g.Expect(dump(ctx, web.Node).WorkloadState[web.UID].Connections.Outbound).To(ContainElement(
				HaveField("ActualDst", ContainSubstring(stock.Addr(false).String()))))
		}
		Eventually(outbound).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(Succeed())
		Eventually(func(g Gomega, ctx SpecContext) {
			g.Expect(dump(ctx, stock.Node).WorkloadState[stock.UID].Connections.Inbound).To(ContainElement(HaveField("Protocol", "HBONE")))
		}).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(Succeed())
		stop()
		Expect(<-done).To(MatchError(context.Canceled))
		Eventually(func(ctx SpecContext) int {
			return len(dump(ctx, web.Node).WorkloadState[web.UID].Connections.Outbound)
		}).WithContext(ctx).WithTimeout(world.Budget.Evidence).Should(BeZero(), "control: closed connections leave the list")
	}, SpecTimeout(world.Budget.Spec))
})

func observe(ctx SpecContext, url string, o workload.Options) *world.Observation {
	GinkgoHelper()
	obs, err := w.Observe(ctx, w.Pod("shop/web"), url, o)
	Expect(err).NotTo(HaveOccurred(), "%v", obs)
	return obs
}

func dump(ctx context.Context, node string) admin.Dump {
	GinkgoHelper()
	d, err := w.ConfigDump(ctx, node)
	Expect(err).NotTo(HaveOccurred())
	return d
}
