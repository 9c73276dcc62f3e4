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
	"k8s.io/apimachinery/pkg/runtime"

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
	pods, err := w.Attackers(ctx, like, name)
	if err != nil {
		return lab.PodInfo{}, err
	}
	return pods[0], nil
}

// Attackers is Attacker for several at once.
func (w *World) Attackers(ctx context.Context, like string, names ...string) ([]lab.PodInfo, error) {
	ginkgo.GinkgoHelper()
	pods, objs := make([]*corev1.Pod, len(names)), make([]runtime.Object, len(names))
	for i, name := range names {
		p := w.ClonePod(like, name)
		p.Labels = map[string]string{"app": name, mesh.LabelDataplaneMode: mesh.ModeNone}
		MeshCredentials(p)
		pods[i], objs[i] = p, p
	}
	ginkgo.DeferCleanup(func(ctx context.Context) error { return w.Delete(ctx, objs...) }, ginkgo.NodeTimeout(Budget.Down))
	joined, err := w.JoinAll(ctx, pods...)
	if err != nil {
		return nil, err
	}
	for _, p := range joined {
		if _, err := w.Output(ctx, p.PodRef, "workload", "cert", "--out", certDir); err != nil {
			return nil, err
		}
	}
	return joined, nil
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
