// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/expect"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/wire"
)

var _ = Describe("a lab that one records", func() {
	It("writes packets of a pod and its node's wire, with the secrets that Wireshark reads HBONE with", world.OwnLab, Label("OB-04"), func(ctx SpecContext) {
		w.Needs(lab.CapTLSKeys)
		l, err := world.StartChanged(ctx, "two-nodes", lab.UpOptions{}, func(s *topologies.Spec) { s.Debug.TLSKeys = true })
		Expect(err).NotTo(HaveOccurred())
		l.Needs(lab.CapCapture)
		file := filepath.Join(GinkgoT().TempDir(), "web.pcapng")
		var said struct{ Packets, Drops int }
		out, err := l.Command(ctx, "capture", "shop/web", "--wire", "--call", "http://cart.shop", "--secrets", "-w", file, "-o", "json")
		Expect(err).NotTo(HaveOccurred())
		Expect(json.Unmarshal([]byte(out), &said)).To(Succeed())
		Expect(said.Drops).To(BeZero())

		doc, err := os.ReadFile(file)
		Expect(err).NotTo(HaveOccurred())
		c, err := wire.Read(bytes.NewReader(doc))
		Expect(err).NotTo(HaveOccurred())
		Expect(c.Packets()).To(HaveLen(said.Packets))
		get := c.Find([]byte("GET / HTTP/1.1"))
		Expect(get).NotTo(BeEmpty(), "plain text before capture, in the pod")
		for _, f := range get {
			Expect(f.Interface).To(HavePrefix("shop/web "), "control: none on the node's wire")
		}
		tunnels := c.To(mesh.PortHBONE)
		Expect(tunnels).NotTo(BeEmpty())
		for _, f := range tunnels {
			info, err := wire.TLS(f)
			Expect(err).NotTo(HaveOccurred())
			Expect(info.TLS13()).To(BeTrue())
			// A key log names a connection by the random of its ClientHello.
			Expect(string(doc)).To(ContainSubstring("CLIENT_TRAFFIC_SECRET_0 " + hex.EncodeToString(info.ClientRandom)))
		}
		Expect(tunnels).To(ContainElement(HaveField("Interface", HavePrefix(l.Pod("shop/web").Node+" "))), "recorded on the wire too")
	}, SpecTimeout(world.Budget.Spec))

	It("refuses secrets that nobody logs, and says how to get them", Label("OB-04"), func(ctx SpecContext) {
		_, err := w.Command(ctx, "capture", "shop/web", "--call", "http://cart.shop", "--secrets", "-w", filepath.Join(GinkgoT().TempDir(), "x.pcapng"))
		Expect(err).To(MatchError(ContainSubstring("--tls-keys")))
	}, SpecTimeout(world.Budget.Spec))

	It("gives a certificate of a workload as files, for clients of any kind", Label("OB-04"), func(ctx SpecContext) {
		dir := filepath.Join(GinkgoT().TempDir(), "cert")
		var said struct{ Identity, Certificate, Key, Root string }
		Expect(json.Unmarshal([]byte(command(ctx, "cert", "shop/web", "--out", dir, "-o", "json")), &said)).To(Succeed())
		Expect(said.Identity).To(Equal(expect.Identity(w.Pod("shop/web")).String()))
		for path, begins := range map[string]string{said.Certificate: "-----BEGIN CERTIFICATE-----", said.Key: "-----BEGIN PRIVATE KEY-----", said.Root: "-----BEGIN CERTIFICATE-----"} {
			info, err := os.Stat(path)
			Expect(err).NotTo(HaveOccurred())
			Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)), path)
			text, err := os.ReadFile(path)
			Expect(err).NotTo(HaveOccurred())
			Expect(strings.HasPrefix(string(text), begins)).To(BeTrue(), path)
		}
	}, SpecTimeout(world.Budget.Spec))
})
