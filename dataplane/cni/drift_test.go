// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/zds"
)

// ports are what listens in the one pod of these tests, as the agent sees it.
type ports struct {
	mu sync.Mutex
	// gone makes them appear with the n-th add from now on; 0: they are there.
	gone int
}

func (p *ports) listening(*netns.NS) (map[uint16]bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone > 0 {
		return map[uint16]bool{8080: true}, nil
	}
	return map[uint16]bool{15001: true, 15006: true, 15008: true, 8080: true}, nil
}

func (p *ports) lose(adds int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = adds
}

// added is told of adds by the journal.
func (p *ports) added() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone > 0 {
		p.gone--
	}
}

// reviving proxies open their ports with an add.
type reviving struct {
	fakeProxies
	p *ports
}

func (r reviving) Add(ctx context.Context, w zds.Workload, ns *netns.NS) error {
	err := r.fakeProxies.Add(ctx, w, ns)
	if err == nil {
		r.p.added()
	}
	return err
}

func startDrifting(t *testing.T, change func(*Config)) (*fakes, *ports, *Agent) {
	t.Helper()
	f, p := newFakes(), &ports{}
	f.set(namespace("shop", "ambient"), pod("web"))
	cfg := f.config()
	cfg.Proxies = reviving{fakeProxies{f}, p}
	cfg.Drift = Drift{Every: time.Hour, Confirm: time.Millisecond, Listening: p.listening}
	if change != nil {
		change(&cfg)
	}
	a, _ := start(t, cfg)
	f.expect(t, enrolled...)
	return f, p, a
}

func (a *Agent) drift(t *testing.T) PodStatus {
	t.Helper()
	st := a.Status()
	if len(st.Pods) != 1 {
		t.Fatalf("status %+v", st)
	}
	return st.Pods[0]
}

func TestDriftOfRulesIsRepaired(t *testing.T) {
	f, _, a := startDrifting(t, nil)
	a.Suspect()
	f.expect(t, "diff")
	f.mu.Lock()
	f.diff = []string{"a chain is missing"}
	f.mu.Unlock()
	a.Suspect()
	f.expect(t, "diff", "apply 2")
	eventually(t, "the drift is remembered", func() bool { return a.drift(t).Drifts == 1 })
	if got := a.drift(t).Drift; got != "rules: a chain is missing" {
		t.Errorf("remembered %q", got)
	}
	f.fail(&f.applyErr, errors.New("no"))
	a.Suspect()
	f.expect(t, "diff", "apply refused")
	eventually(t, "both are counted", func() bool { return a.drift(t).Drifts == 2 })
	eventually(t, "it stands on the pod", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return strings.HasSuffix(f.noted, "rules: a chain is missing; not repaired: no")
	})
}

func TestDriftOfAProxyIsRepaired(t *testing.T) {
	add := enrolled[1]
	f, p, a := startDrifting(t, nil)
	for _, tt := range []struct {
		name string
		gone int
		want []string
	}{
		{"it is told once more", 1, []string{"diff", add}},
		{"it only believed to serve the pod", 2, []string{"diff", add, "del uid-web", add}},
		{"it is beyond repair", 9, []string{"diff", add, "del uid-web", add}},
	} {
		before := a.drift(t).Drifts
		p.lose(tt.gone)
		a.Suspect()
		f.expect(t, tt.want...)
		eventually(t, tt.name, func() bool { return a.drift(t).Drifts == before+1 })
		p.lose(0)
	}
	f.fail(&f.addErr, errAway)
	p.lose(1)
	a.Suspect()
	f.expect(t, "diff", "add uid-web refused")
	if got := a.drift(t).Drifts; got != 3 {
		t.Errorf("a proxy that is away counts as drift: %d", got)
	}
}

func TestDriftIsFoundByTimeAndByEvents(t *testing.T) {
	f := newFakes()
	f.set(namespace("shop", "ambient"), pod("web"))
	cfg := f.config()
	cfg.Drift.Every = time.Millisecond
	start(t, cfg)
	f.await(t, "looks", func(got []string) bool { return len(got) > 6 && got[5] == "diff" && got[6] == "diff" })

	changed := make(chan func(), 1)
	f, _, _ = startDrifting(t, func(c *Config) {
		c.Drift.Watch = func(ctx context.Context, ns *netns.NS, call func()) error {
			changed <- call
			<-ctx.Done()
			return nil
		}
	})
	(<-changed)()
	f.expect(t, "diff")
	f.remove(pod("web"))
	f.expect(t, "del uid-web", "clear uid-web")
}

func TestDriftIsNotLookedForIfSwitchedOff(t *testing.T) {
	f, p, a := startDrifting(t, func(c *Config) { c.Drift.Every = 0 })
	p.lose(1)
	a.Suspect()
	f.set(pod("web", func(p *corev1.Pod) { p.Annotations["ambient.istio.io/dns-capture"] = "true" }))
	f.expect(t, "apply 3") // and nothing before
}
