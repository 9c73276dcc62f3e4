// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// flow is a client that calls until it is told to stop, however long what happens meanwhile takes.
type flow struct {
	from string
	stop func()
	done chan struct{} // closed when it has stopped
	res  workload.Result
	err  error
}

// begin starts a client in a pod. A scenario that fails before finish does not leave it behind.
func begin(ctx SpecContext, l *world.World, from, url string, o workload.Options) *flow {
	GinkgoHelper()
	r, w, err := os.Pipe()
	Expect(err).NotTo(HaveOccurred())
	f := &flow{from: from, done: make(chan struct{}), stop: sync.OnceFunc(func() { _ = w.Close() })}
	o.UntilEOF = true
	pod := l.Pod(from).PodRef
	go func() {
		defer close(f.done)
		defer r.Close()
		var out, errOut bytes.Buffer
		exit, err := l.Exec(ctx, pod, workload.Command(url, o), lab.Stdio{In: r, Out: &out, Err: &errOut})
		if err != nil || exit > 1 {
			f.err = fmt.Errorf("calls of %s: exit %d: %w %s", from, exit, err, errOut.String())
			return
		}
		f.err = json.Unmarshal(out.Bytes(), &f.res)
	}()
	DeferCleanup(func() {
		f.stop()
		<-f.done
	})
	return f
}

// finish stops the client and returns what came of its calls.
func (f *flow) finish() workload.Result {
	GinkgoHelper()
	f.stop()
	<-f.done
	Expect(f.err).NotTo(HaveOccurred())
	return f.res
}

func at(p lab.PodInfo, scheme string, port uint16) string {
	return fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(p.Addr(false), port))
}
