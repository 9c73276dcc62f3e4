// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload/peer"
)

// ask has a pod ask another's proxy for a tunnel, with the certificate m.
func ask(ctx context.Context, l *world.World, from, to lab.PodInfo, m peer.Material) peer.Outcome {
	GinkgoHelper()
	o, err := json.Marshal(peer.Order{Material: m, Address: netip.AddrPortFrom(to.Addr(false), mesh.PortHBONE)})
	Expect(err).NotTo(HaveOccurred())
	var out, problem bytes.Buffer
	exit, err := l.Exec(ctx, from.PodRef, []string{"workload", "tunnel", "call"}, lab.Stdio{In: bytes.NewReader(o), Out: &out, Err: &problem})
	Expect(err).NotTo(HaveOccurred())
	Expect(exit).To(BeZero(), problem.String())
	var got peer.Outcome
	Expect(json.Unmarshal(out.Bytes(), &got)).To(Succeed(), out.String())
	return got
}

// process is a command in a pod that is fed lines and prints lines. It ends with its input.
type process struct {
	in     *io.PipeWriter
	out    *bufio.Reader
	ended  chan struct{}
	errors bytes.Buffer // read after ended
}

// launch starts a command, which ends with the scenario at the latest.
func launch(ctx SpecContext, l *world.World, pod lab.PodRef, argv ...string) *process {
	GinkgoHelper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	p := &process{in: inW, out: bufio.NewReader(outR), ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_, err := l.Exec(ctx, pod, argv, lab.Stdio{In: inR, Out: outW, Err: &p.errors})
		_ = outW.CloseWithError(io.EOF)
		_ = inR.CloseWithError(err)
	}()
	DeferCleanup(p.end)
	return p
}

func (p *process) end() {
	_ = p.in.Close()
	go func() { _, _ = io.Copy(io.Discard, p.out) }() // so that its last words do not keep it
	<-p.ended
}

// tell sends a line and returns the next line of the answer.
func (p *process) tell(line []byte) []byte {
	GinkgoHelper()
	_, err := p.in.Write(append(line, '\n'))
	Expect(err).NotTo(HaveOccurred())
	answer, err := p.out.ReadBytes('\n')
	if err != nil {
		<-p.ended
		Fail("no answer: " + p.errors.String())
	}
	return answer
}

// impersonate starts an HBONE server in a pod, with the certificate m, in front of the pod's own application.
func impersonate(ctx SpecContext, l *world.World, pod lab.PodInfo, m peer.Material) *process {
	GinkgoHelper()
	o, err := json.Marshal(peer.Order{
		Material: m, Address: netip.AddrPortFrom(pod.Addr(false), mesh.PortHBONE), App: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 8080),
	})
	Expect(err).NotTo(HaveOccurred())
	p := launch(ctx, l, pod.PodRef, "workload", "tunnel", "serve")
	Expect(string(p.tell(o))).To(Equal("ready\n"))
	return p
}

// refusedBy waits for the log record that says why a node's ztunnel refused a peer.
func refusedBy(ctx context.Context, l *world.World, node string, from lab.PodInfo, since time.Time) telemetry.Entry {
	GinkgoHelper()
	e, err := l.WaitEntry(ctx, node, since, func(e telemetry.Entry) bool {
		return e.Record.Direction == telemetry.Inbound && e.Record.Src.Addr.Addr().Unmap() == from.Addr(false) && e.Error != "" &&
			!e.Record.Start.Before(since) // a client that is refused tries again, and that may be logged late
	})
	Expect(err).NotTo(HaveOccurred())
	return e
}
