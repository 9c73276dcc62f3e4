// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload/peer"
)

var istiod = lab.PodRef{Namespace: "istio-system", Name: "istiod"}

// authority signs what no honest one does.
type authority struct {
	key  crypto.Signer
	root *x509.Certificate
}

// meshAuthority is the lab's own: a scenario that forges with it shows what the proxies check beside the signature.
func meshAuthority(ctx context.Context, l *world.World) *authority {
	GinkgoHelper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: istiod.Namespace, Name: "istio-ca-secret"}}
	Expect(l.Get(ctx, secret)).To(Succeed())
	read := func(name string) []byte {
		GinkgoHelper()
		block, _ := pem.Decode(secret.Data[name])
		Expect(block).NotTo(BeNil(), name)
		return block.Bytes
	}
	key, err := x509.ParsePKCS8PrivateKey(read("ca-key.pem"))
	Expect(err).NotTo(HaveOccurred())
	root, err := x509.ParseCertificate(read("root-cert.pem"))
	Expect(err).NotTo(HaveOccurred())
	return &authority{key: key.(crypto.Signer), root: root}
}

// strangerAuthority is nobody's, under the same name.
func strangerAuthority(like *authority) *authority {
	GinkgoHelper()
	key := newKey()
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: like.root.Subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	Expect(err).NotTo(HaveOccurred())
	root, err := x509.ParseCertificate(der)
	Expect(err).NotTo(HaveOccurred())
	return &authority{key: key, root: root}
}

func newKey() *ecdsa.PrivateKey {
	GinkgoHelper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Expect(err).NotTo(HaveOccurred())
	return key
}

func serial() *big.Int {
	GinkgoHelper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	Expect(err).NotTo(HaveOccurred())
	return n
}

// workload certifies an identity from and until so far from now.
func (a *authority) workload(id string, from, until time.Duration) peer.Material {
	GinkgoHelper()
	uri, err := url.Parse(id)
	Expect(err).NotTo(HaveOccurred())
	return a.sign(&x509.Certificate{URIs: []*url.URL{uri}}, from, until)
}

// server certifies a server at an address.
func (a *authority) server(ip netip.Addr) peer.Material {
	GinkgoHelper()
	return a.sign(&x509.Certificate{IPAddresses: []net.IP{ip.AsSlice()}}, -time.Hour, time.Hour)
}

func (a *authority) sign(t *x509.Certificate, from, until time.Duration) peer.Material {
	GinkgoHelper()
	key, now := newKey(), time.Now()
	t.SerialNumber, t.NotBefore, t.NotAfter = serial(), now.Add(from), now.Add(until)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, a.root, key.Public(), a.key)
	Expect(err).NotTo(HaveOccurred())
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	Expect(err).NotTo(HaveOccurred())
	return peer.Material{Cert: pemText("CERTIFICATE", der), Key: pemText("PRIVATE KEY", raw)}
}

// revoke is a revocation list of serial numbers.
func (a *authority) revoke(serials ...string) string {
	GinkgoHelper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		n, ok := new(big.Int).SetString(s, 10)
		Expect(ok).To(BeTrue(), s)
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.root, a.key)
	Expect(err).NotTo(HaveOccurred())
	return pemText("X509 CRL", der)
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// writeFile replaces a file of a pod as a whole.
func writeFile(ctx context.Context, l *world.World, pod lab.PodRef, path, content string) {
	GinkgoHelper()
	var problem bytes.Buffer
	exit, err := l.Exec(ctx, pod, []string{"workload", "write", path}, lab.Stdio{In: bytes.NewBufferString(content), Err: &problem})
	Expect(err).NotTo(HaveOccurred())
	Expect(exit).To(BeZero(), problem.String())
}
