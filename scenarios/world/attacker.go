// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/onsi/ginkgo/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload/forge"
)

// certDir is where an attacker keeps its certificate.
const certDir = "/tmp/cert"

// Attacker adds a pod like "namespace/name" that has a certificate of its own identity: what somebody has who took over an
// application. It is outside the mesh, so that no proxy of its own is in the way. It goes when the scenario ends.
func (w *World) Attacker(ctx context.Context, like, name string) (lab.PodInfo, error) {
	ginkgo.GinkgoHelper()
	p := w.ClonePod(like, name)
	p.Labels = map[string]string{"app": name, mesh.LabelDataplaneMode: mesh.ModeNone}
	MeshCredentials(p)
	return w.attacker(ctx, p)
}

func (w *World) attacker(ctx context.Context, p *corev1.Pod) (lab.PodInfo, error) {
	ginkgo.DeferCleanup(func(ctx context.Context) error { return w.Delete(ctx, p) }, ginkgo.NodeTimeout(Budget.Down))
	pod, err := w.Join(ctx, p)
	if err != nil {
		return pod, err
	}
	_, err = w.Output(ctx, pod.PodRef, "workload", "cert", "--out", certDir)
	return pod, err
}

// Connect sends one CONNECT made by hand from an attacker to the HBONE port of an address, and asks the application behind
// it, if that is what the answer allows, for a report of what it saw.
func (w *World) Connect(ctx context.Context, from lab.PodInfo, to netip.Addr, authority string, more ...forge.Field) (forge.Answer, error) {
	c := forge.ConnectCommand{CertDir: certDir, Request: forge.Request{
		To: netip.AddrPortFrom(to, mesh.PortHBONE).String(), Timeout: Budget.Call,
		Payload: []byte("GET / HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n"),
		Fields:  append([]forge.Field{{Name: ":method", Value: http.MethodConnect}, {Name: ":authority", Value: authority}}, more...),
	}}
	var a forge.Answer
	out, err := w.Output(ctx, from.PodRef, append([]string{"workload", "connect"}, c.Args()...)...)
	if err != nil {
		return a, fmt.Errorf("CONNECT %q: %w", authority, err)
	}
	return a, json.Unmarshal(out, &a)
}
