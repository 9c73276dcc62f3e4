// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// fakeDriver answers Exec with a canned call and serves canned logs; pods are fixed.
type fakeDriver struct {
	pods []PodInfo
	exec func(argv []string, stdio Stdio) (int, error)

	admin http.RoundTripper

	mu   sync.Mutex
	logs map[string]string // by node
}

var errFake = errors.New("the fake has none")

func (f *fakeDriver) Up(context.Context, *topologies.Spec, UpOptions) error { return errFake }
func (f *fakeDriver) Down(context.Context) error                            { return nil }
func (f *fakeDriver) Apply(context.Context, ...runtime.Object) error        { return errFake }
func (f *fakeDriver) Delete(context.Context, ...runtime.Object) error       { return errFake }
func (f *fakeDriver) Get(context.Context, runtime.Object) error             { return errFake }
func (f *fakeDriver) Link(string, string) Link                              { return nil }
func (f *fakeDriver) Capture(context.Context, Target) (Capture, error)      { return nil, errFake }
func (f *fakeDriver) Inspect(context.Context, Target) (Inspection, error) {
	return Inspection{}, errFake
}
func (f *fakeDriver) Pods(context.Context) ([]PodInfo, error) { return f.pods, nil }
func (f *fakeDriver) Capabilities() Capabilities              { return nil }
func (f *fakeDriver) Daemon(node, _ string) Daemon            { return fakeDaemon{f, node} }

func (f *fakeDriver) Exec(_ context.Context, _ PodRef, argv []string, stdio Stdio) (int, error) {
	return f.exec(argv, stdio)
}

func (f *fakeDriver) log(node, lines string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logs[node] += lines
}

type fakeDaemon struct {
	f    *fakeDriver
	node string
}

func (d fakeDaemon) Signal(context.Context, os.Signal) error  { return errFake }
func (d fakeDaemon) Stop(context.Context) error               { return errFake }
func (d fakeDaemon) Start(context.Context, ...string) error   { return errFake }
func (d fakeDaemon) Restart(context.Context, ...string) error { return errFake }
func (d fakeDaemon) Replace(context.Context, ...string) error { return errFake }
func (d fakeDaemon) Ready(context.Context) error              { return errFake }
func (d fakeDaemon) Status(context.Context) (Status, error)   { return Status{}, errFake }
func (d fakeDaemon) Admin() http.RoundTripper                 { return d.f.admin }
func (d fakeDaemon) Logs(context.Context, time.Time) (io.ReadCloser, error) {
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	return io.NopCloser(strings.NewReader(d.f.logs[d.node])), nil
}
func (d fakeDaemon) LogsSoFar(ctx context.Context, since time.Time) (io.ReadCloser, error) {
	return d.Logs(ctx, since)
}

// newFake is a lab of three nodes: web and cart are enrolled, batch and legacy are not.
func newFake(t *testing.T) (*Lab, *fakeDriver) {
	t.Helper()
	pod := func(ns, name, node string, enrolled bool, ips ...string) PodInfo {
		p := PodInfo{PodRef: PodRef{ns, name}, Node: node, Enrolled: enrolled, Ready: true}
		for _, ip := range ips {
			p.IPs = append(p.IPs, netip.MustParseAddr(ip))
		}
		return p
	}
	f := &fakeDriver{logs: map[string]string{}, pods: []PodInfo{
		pod("plain", "batch", "node1", false, "10.244.0.20", "fd00:10:244::20"),
		pod("plain", "legacy", "node2", false, "10.244.1.20", "fd00:10:244:1::20"),
		pod("shop", "cart", "node2", true, "10.244.1.9", "fd00:10:244:1::9"),
		pod("shop", "web", "node1", true, "10.244.0.5", "fd00:10:244::5"),
		pod("test", "web", "node3", false, "10.244.2.5", "fd00:10:244:2::5"),
	}}
	nodes := []topologies.Node{{Name: "node1"}, {Name: "node2"}, {Name: "node3"}}
	return &Lab{Driver: f, Spec: &topologies.Spec{Clusters: []topologies.Cluster{{Nodes: nodes}}}}, f
}

// calls makes Exec print what a call came to.
func (f *fakeDriver) calls(c workload.Call) {
	f.exec = func(argv []string, stdio Stdio) (int, error) {
		res := workload.Result{URL: argv[len(argv)-1], Calls: []workload.Call{c}, OK: 1}
		exit := 0
		if !c.OK {
			res.OK, res.Failed, exit = 0, 1, 1
		}
		return exit, json.NewEncoder(stdio.Out).Encode(res)
	}
}

// record is one line of an access log, as telemetry writes it.
func record(at time.Time, message, direction, src, dst string, more map[string]any) string {
	m := map[string]any{
		"time": at.UTC().Format(time.RFC3339Nano), "level": "info", "scope": "access", "message": message, "direction": direction,
		"src.addr": src, "dst.addr": dst, "bytes_sent": 84, "bytes_recv": 358, "duration": "2ms",
		"start_unix_nano": at.Add(-2 * time.Millisecond).UnixNano(), "schema": 1,
	}
	for k, v := range more {
		m[k] = v
	}
	data, err := json.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("encode a record of this test: %v", err))
	}
	return string(data) + "\n"
}
