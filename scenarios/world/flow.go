// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"

	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Flow is a client that calls until it is told to stop, however long what happens meanwhile takes.
type Flow struct {
	From string // the pod, "namespace/name"

	// Stop tells the client to make no more calls, and does not wait.
	Stop func()

	done chan struct{} // closed when it has stopped
	res  workload.Result
	err  error
}

// spoken is a writer whose channel is closed by the first byte.
type spoken struct {
	text  bytes.Buffer // not embedded: io.Copy would find its ReadFrom, and pass Write by
	began chan struct{}
	once  sync.Once
}

func (s *spoken) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.began) })
	return s.text.Write(p)
}

// Begin starts a client in a pod, and returns once it calls. A scenario that fails before Finish does not leave it behind.
func (w *World) Begin(ctx ginkgo.SpecContext, from, url string, o workload.Options) *Flow {
	ginkgo.GinkgoHelper()
	r, stop, err := os.Pipe()
	gomega.Expect(err).NotTo(gomega.HaveOccurred())
	f := &Flow{From: from, done: make(chan struct{}), Stop: sync.OnceFunc(func() { _ = stop.Close() })}
	o.UntilEOF = true
	pod, errOut := w.Pod(from).PodRef, &spoken{began: make(chan struct{})}
	go func() {
		defer close(f.done)
		defer r.Close()
		var out bytes.Buffer
		exit, err := w.Exec(ctx, pod, workload.Command(url, o), lab.Stdio{In: r, Out: &out, Err: errOut})
		if err != nil || exit > 1 {
			f.err = fmt.Errorf("calls of %s: exit %d: %w %s", from, exit, err, errOut.text.String())
			return
		}
		f.err = json.Unmarshal(out.Bytes(), &f.res)
	}()
	ginkgo.DeferCleanup(func() {
		f.Stop()
		<-f.done
	})
	select {
	case <-errOut.began:
	case <-f.done:
		gomega.Expect(f.err).NotTo(gomega.HaveOccurred(), "calls of %s ended before they began", from)
	}
	return f
}

// Finish stops the client and returns what came of its calls.
func (f *Flow) Finish() workload.Result {
	ginkgo.GinkgoHelper()
	f.Stop()
	<-f.done
	gomega.Expect(f.err).NotTo(gomega.HaveOccurred())
	return f.res
}

// Done is closed when the client has stopped, by itself or by Finish.
func (f *Flow) Done() <-chan struct{} { return f.done }
