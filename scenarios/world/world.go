// SPDX-License-Identifier: Apache-2.0

// Package world is what scenarios stand on: the suite's lab, calls from pods with everything that can be known of them
// afterwards (reply, log records, metrics), waits within named budgets, and the evidence that a failure leaves behind.
// What must be true of a call is package expect's; bringing a lab up is a driver's.
package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/onsi/ginkgo/v2"

	"github.com/ambientlab/ambientlab/reports/schema"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// World is one lab, seen by scenarios.
type World struct {
	*lab.Lab
	Out string // where evidence goes

	driver string
	caps   lab.Capabilities       // what the lab can do, or could until it was taken down
	pods   map[string]lab.PodInfo // as they were when the lab came up
	logs   map[string]*accessLog  // by node; of ztunnels; not changed once the lab is up
	series *series
	report schema.Lab
	flight *flightRecorder
	loan   *loan // nil: this lab is not lent

	calls *atomic.Int64 // and other commands of scenarios that run in pods now
	tides int           // see Converge
}

// NewDriver makes a driver by name; the suite's main file provides it, so that this package links none.
type NewDriver func(name string) (lab.Driver, error)

// Settings is what the command line says about a run.
type Settings struct {
	Driver string // AMBIENTLAB_E2E: netns or kind
	Bin    string // AMBIENTLAB_BIN
	Out    string // AMBIENTLAB_OUT
	// Revision of the code under test: AMBIENTLAB_REVISION.
	Revision string
	CNI      string // of kind clusters; "" is what their node image brings
	New      NewDriver
}

var (
	settings Settings
	shared   World
)

// Shared is the suite's lab. Scenarios take the pointer when they are declared; it is filled in before the first runs.
func Shared() *World { return &shared }

// Prepare says how this run goes, before anything else.
func Prepare(s Settings) {
	settings = s
	stretch(s.Driver)
}

// Clear removes the evidence that an earlier run left, once and before any lab of this one.
func Clear() error { return os.RemoveAll(failures()) }

// failures is where failed scenarios leave their bundles.
func failures() string { return filepath.Join(settings.Out, "failures") }

// Start brings up another lab for the scenario that calls it, which has OwnLab, and takes it down when the scenario ends. On
// clusters its pods and daemons may be an earlier lab's, as they were made but with what they have counted and pooled since: a
// scenario to which that matters asks for daemons with settings of its own.
func Start(ctx context.Context, topology string, o lab.UpOptions) (*World, error) {
	return StartChanged(ctx, topology, o, func(*topologies.Spec) {})
}

// StartChanged is Start for a topology of the catalogue with a change to it.
func StartChanged(ctx context.Context, topology string, o lab.UpOptions, change func(*topologies.Spec)) (*World, error) {
	if err := owning(); err != nil {
		return nil, err
	}
	w, err := start(ctx, topology, o, change)
	if err != nil {
		return nil, err
	}
	ginkgo.DeferCleanup(func(ctx context.Context) error {
		return errors.Join(collectIfFailed(ctx, w), w.down(ctx))
	}, ginkgo.NodeTimeout(Budget.Down+Budget.Spec))
	return w, nil
}

func start(ctx context.Context, topology string, o lab.UpOptions, change func(*topologies.Spec)) (*World, error) {
	spec, err := topologies.Open(topology)
	if err != nil {
		return nil, err
	}
	change(spec)
	d, err := settings.New(settings.Driver)
	if err != nil {
		return nil, err
	}
	o.Bin, o.Unique = settings.Bin, true // a lab of that name may stand, for people
	ctx, cancel := context.WithTimeout(ctx, Budget.Up)
	defer cancel()
	began := time.Now()
	err = d.Up(ctx, spec, o)
	for errors.Is(err, lab.ErrOccupied) {
		made, closing := room(ctx)
		if !made || closing != nil {
			err = errors.Join(err, closing)
			break
		}
		err = d.Up(ctx, spec, o)
	}
	if err != nil {
		return nil, fmt.Errorf("bring up %s on %s: %w", topology, settings.Driver, err)
	}
	w := &World{Lab: &lab.Lab{Driver: d, Spec: spec, Dir: directory(d)}, Out: settings.Out, driver: settings.Driver, logs: map[string]*accessLog{}, series: newSeries(), flight: &flightRecorder{}, calls: &atomic.Int64{}}
	for _, node := range w.Nodes() {
		w.logs[node] = &accessLog{}
	}
	w.report = schema.Lab{Driver: w.driver, CNI: settings.CNI, Topology: topology, BootMillis: millis(time.Since(began))}
	if err := w.look(ctx); err != nil {
		return w, err
	}
	if err := w.recordWires(ctx); err != nil {
		return w, errors.Join(err, w.down(ctx))
	}
	return w, nil
}

// directory is where a driver keeps a lab on this host; "" if it does not.
func directory(d lab.Driver) string {
	if in, ok := d.(interface{ Dir() string }); ok {
		return in.Dir()
	}
	return ""
}

func (w *World) look(ctx context.Context) error {
	pods, err := w.Pods(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("list pods: %w", err), w.down(ctx))
	}
	w.caps, w.pods = w.Lab.Capabilities(), map[string]lab.PodInfo{}
	for _, p := range pods {
		w.pods[p.PodRef.String()] = p
		if p.Namespace != "istio-system" && p.Namespace != "kube-system" {
			w.report.Pods++
		}
	}
	for i := range w.Spec.Clusters {
		w.report.Nodes += len(w.Spec.Clusters[i].Nodes)
	}
	for _, c := range []lab.Capability{
		lab.CapIPv4, lab.CapIPv6, lab.CapCapture, lab.CapInspect, lab.CapSignal, lab.CapLink, lab.CapExternal, lab.CapPodCaps,
		lab.CapNetworkPolicy, lab.CapKubelet, lab.CapImpair, lab.CapMTU, lab.CapNetworks, lab.CapPodIPs, lab.CapTLSKeys,
		lab.CapStopped, lab.CapCAFiles, lab.CapAPIServer, lab.CapProcess,
	} {
		if why := w.Capabilities().Missing(c); len(why) > 0 {
			w.report.Missing = append(w.report.Missing, schema.MissingItem{Capability: string(c), Reason: why[0]})
		}
	}
	return nil
}

// Capabilities are those of the lab, also of one that was taken down for want of room.
func (w *World) Capabilities() lab.Capabilities { return w.caps }

func (w *World) down(ctx context.Context) error {
	w.dropWires(ctx)
	began := time.Now()
	err := w.Down(ctx)
	w.report.DownMillis = millis(time.Since(began))
	ginkgo.AddReportEntry(labEntry, w.report, ginkgo.ReportEntryVisibilityNever)
	return err
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Pod is a pod of the topology by "namespace/name". One that does not exist is the scenario's mistake, and fails it.
func (w *World) Pod(name string) lab.PodInfo {
	ginkgo.GinkgoHelper()
	p, ok := w.pods[name]
	if !ok {
		ginkgo.Fail(fmt.Sprintf("the topology %s has no pod %s", w.Spec.Name, name))
	}
	return p
}

// Now is Pod as it is now: the pods of daemons are others after a replacement, with other addresses.
func (w *World) Now(ctx context.Context, name string) lab.PodInfo {
	ginkgo.GinkgoHelper()
	p, err := w.Find(ctx, w.Pod(name).PodRef)
	if err != nil {
		ginkgo.Fail(err.Error())
	}
	return p
}

// Needs skips the scenario, with the reason, if the lab lacks a capability. What a lab of one's own would lack the suite's lacks
// too, but for a family of addresses: to ask that one comes before a lab is brought up for nothing.
func (w *World) Needs(want ...lab.Capability) {
	ginkgo.GinkgoHelper()
	for _, why := range w.Capabilities().Missing(want...) {
		ginkgo.Skip(why)
	}
}
