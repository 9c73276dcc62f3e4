// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"

	_ "github.com/ambientlab/ambientlab/scenarios/dns"
	_ "github.com/ambientlab/ambientlab/scenarios/faults"
	_ "github.com/ambientlab/ambientlab/scenarios/identity"
	_ "github.com/ambientlab/ambientlab/scenarios/kubelet"
	_ "github.com/ambientlab/ambientlab/scenarios/lifecycle"
	_ "github.com/ambientlab/ambientlab/scenarios/observability"
	_ "github.com/ambientlab/ambientlab/scenarios/policy"
	_ "github.com/ambientlab/ambientlab/scenarios/security"
	_ "github.com/ambientlab/ambientlab/scenarios/traffic"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies/driver/kind"
	"github.com/ambientlab/ambientlab/topologies/driver/kube"
	"github.com/ambientlab/ambientlab/topologies/driver/netns"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// topology is the suite's lab: it has a pair of pods of every kind.
const topology = "three-nodes"

func TestScenarios(t *testing.T) {
	driver := os.Getenv("AMBIENTLAB_E2E")
	if driver == "" {
		t.Skip("no lab was asked for: the scenarios run with make e2e or make test")
	}
	out := os.Getenv("AMBIENTLAB_OUT")
	if out == "" {
		out = filepath.Join(os.TempDir(), "ambientlab-out")
	}
	settings := world.Settings{Driver: driver, Bin: os.Getenv("AMBIENTLAB_BIN"), Out: out, Revision: os.Getenv("AMBIENTLAB_REVISION"), New: newDriver}
	readCNI(t, &settings)

	debug.SetGCPercent(400) // processors are what runs out here, not memory

	// Every process of a parallel run has a lab of its own; what the first of them does before comes before all labs.
	world.Prepare(settings)
	ginkgo.SynchronizedBeforeSuite(func(ctx context.Context) {
		gomega.Expect(world.Clear()).To(gomega.Succeed())
		if driver == "kind" { // what a run that was killed has left
			_, err := kind.Sweep(ctx, settings.Bin)
			gomega.Expect(err).NotTo(gomega.HaveOccurred())
		}
	}, func(ctx context.Context) {
		gomega.Expect(world.Init(ctx, topology)).To(gomega.Succeed())
	}, ginkgo.NodeTimeout(world.Budget.Up+world.Budget.Down))
	ginkgo.AfterSuite(func(ctx context.Context) {
		gomega.Expect(world.Close(ctx)).To(gomega.Succeed())
		gomega.Expect(clusters.Close(ctx)).To(gomega.Succeed())
	}, ginkgo.NodeTimeout(world.Budget.Down))
	ginkgo.BeforeEach(func(ctx context.Context) {
		gomega.Expect(world.Ready(ctx)).To(gomega.Succeed())
	}, ginkgo.NodeTimeout(world.Budget.Up+world.Budget.Down))
	ginkgo.AfterEach(world.CollectIfFailed, ginkgo.NodeTimeout(world.Budget.Spec))
	ginkgo.ReportAfterSuite("results", func(r types.Report) {
		gomega.Expect(world.WriteResults(r)).To(gomega.Succeed())
	})

	suite, reporter := ginkgo.GinkgoConfiguration()
	if driver == "kind" {
		if suite.ParallelTotal > kind.DefaultMost {
			t.Fatalf("PROCS=%d: each process has a cluster, and a machine has inotify instances for %d", suite.ParallelTotal, kind.DefaultMost)
		}
		clusters.Most = kind.DefaultMost / suite.ParallelTotal
	}
	if reporter.JUnitReport == "" {
		reporter.JUnitReport = filepath.Join(out, "junit.xml")
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "ambientlab scenarios", suite, reporter)
}

// cni is that of kind clusters: what AMBIENTLAB_CNI names, as `lab up --cni` does.
var cni kind.CNI

func readCNI(t *testing.T, s *world.Settings) {
	from, enforces := os.Getenv("AMBIENTLAB_CNI"), os.Getenv("AMBIENTLAB_CNI_NETWORK_POLICY") != ""
	if s.Driver != "kind" {
		if from != "" || enforces {
			t.Fatalf("AMBIENTLAB_CNI and AMBIENTLAB_CNI_NETWORK_POLICY mean nothing to the driver %s, but to kind", s.Driver)
		}
		return
	}
	var err error
	if cni, err = kind.ReadCNI(t.Context(), from, enforces); err != nil {
		t.Fatal(err)
	}
	s.CNI = cni.Name
}

// clusters are what labs of kind have been in and will be. With AMBIENTLAB_KEEP they stand for the next run.
var clusters = kind.Pool{Keep: os.Getenv("AMBIENTLAB_KEEP") != ""}

func newDriver(name string) (lab.Driver, error) {
	switch name {
	case "netns":
		return netns.New(netns.Options{}), nil
	case "kind":
		return kind.New(kind.Options{Pool: &clusters, Image: os.Getenv("AMBIENTLAB_NODE_IMAGE"), CNI: cni, Progress: progress}), nil
	case "kube": // a cluster that stands, whose nodes nobody here can reach
		return kube.New(kube.Options{Image: os.Getenv("AMBIENTLAB_IMAGE"), Progress: progress}), nil
	default:
		return nil, fmt.Errorf("AMBIENTLAB_E2E=%s: the drivers are: netns, kind, kube", name)
	}
}

// progress tells, beside a scenario's own output, what takes so long.
func progress(what string) {
	fmt.Fprintf(ginkgo.GinkgoWriter, "%s  %s\n", time.Now().Format("15:04:05.000"), what)
}
