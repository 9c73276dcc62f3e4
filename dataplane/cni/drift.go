// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// Drift is how the agent makes sure that what it has done to a pod stays done: rules may be flushed by whoever has the rights
// in the pod, and a proxy may be gone while everybody takes it for there (istio/istio#61182: a pod without its data plane for 29
// days, and called enrolled all the time). The rules are compared with the plan; that there is a proxy is seen where its
// peers would see it, by the listeners in the pod, so that the question needs no word between agent and proxy. What differs is
// repaired, logged and counted.
type Drift struct {
	// Every is how often all pods are looked at, besides when something points to a change; 0: never, for whatever reason.
	Every time.Duration
	// Confirm is how long a proxy's listeners may be missing before that is believed: a proxy that was just restarted has
	// its pods named one after the other. 0 means 500 ms.
	Confirm time.Duration
	// Watch calls changed when rules in a namespace change, until ctx ends; nil: changes are found in time.
	Watch func(ctx context.Context, ns *netns.NS, changed func()) error
	// Listening is the ports in a namespace at which something listens; nil: proxies are not looked for.
	Listening func(ns *netns.NS) (map[uint16]bool, error)
}

// proxyPorts are where a pod's proxy listens.
var proxyPorts = []uint16{mesh.PortOutbound, mesh.PortPlaintext, mesh.PortHBONE}

// drifted is what is remembered of a pod's drifts.
type drifted struct {
	times int
	last  time.Time
	what  string
}

// Suspect asks for a look at all pods soon: something happened after which one may not be as it was left. It never blocks.
func (a *Agent) Suspect() { poke(a.suspects) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watchDrift looks at all pods, again and again, until ctx ends.
func (a *Agent) watchDrift(ctx context.Context) error {
	d := &a.cfg.Drift
	if d.Every == 0 {
		return nil
	}
	if d.Confirm == 0 {
		d.Confirm = 500 * time.Millisecond
	}
	w := watchers{agent: a, running: map[string]watcher{}}
	defer w.stop()
	next := time.NewTicker(d.Every)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.moved:
			if d.Watch != nil {
				w.follow(ctx)
			}
		case <-next.C:
			a.checkAll(ctx)
		case <-a.suspects:
			a.checkAll(ctx)
		}
	}
}

// checkAll looks at every pod that was enrolled. Those whose proxy is missing get a second look.
func (a *Agent) checkAll(ctx context.Context) {
	a.checkProbes(ctx)
	var alone []string
	for _, uid := range a.enrolledPods() {
		a.checkRules(ctx, uid)
		if missing := a.missing(uid); len(missing) > 0 {
			alone = append(alone, uid)
		}
	}
	if len(alone) == 0 {
		return
	}
	t := time.NewTimer(a.cfg.Drift.Confirm)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return
	case <-t.C:
	}
	for _, uid := range alone {
		a.checkProxy(ctx, uid)
	}
}

// enrolledPods are those that a proxy serves, so far as the agent knows. Others are being worked on anyhow.
func (a *Agent) enrolledPods() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var uids []string
	for uid, s := range a.pods {
		if s.served && s.ns != nil {
			uids = append(uids, uid)
		}
	}
	slices.Sort(uids)
	return uids
}

// checkRules compares a pod's rules with its plan.
func (a *Agent) checkRules(ctx context.Context, uid string) {
	release, err := a.locks.take(ctx, uid)
	if err != nil {
		return
	}
	defer release()
	s, known := a.state(uid)
	if !known || s.ns == nil {
		return
	}
	plan := capture.NewPlan(s.options)
	diff, err := a.cfg.Rules.Diff(ctx, s.ns, plan)
	switch {
	case err != nil && ctx.Err() == nil:
		a.cfg.Log.Warn("redirection not compared", "pod", s.ref, "error", err)
	case err != nil || len(diff) == 0:
	default:
		_, err := a.cfg.Rules.Apply(ctx, s.ns, plan)
		a.noteDrift(s, "rules", strings.Join(diff, "; "), err)
	}
}

// missing is the ports at which a pod's proxy should listen and does not.
func (a *Agent) missing(uid string) []uint16 {
	s, known := a.state(uid)
	if a.cfg.Drift.Listening == nil || !known || !s.served || s.ns == nil {
		return nil
	}
	open, err := a.cfg.Drift.Listening(s.ns)
	if err != nil {
		a.cfg.Log.Warn("proxy not looked for", "pod", s.ref, "error", err)
		return nil
	}
	return slices.DeleteFunc(slices.Clone(proxyPorts), func(p uint16) bool { return open[p] })
}

// checkProxy has a proxy serve a pod that has none. First it is told so once more, which a proxy that knows better takes for a
// repetition; one that only believes to serve the pod must let it go before.
func (a *Agent) checkProxy(ctx context.Context, uid string) {
	release, err := a.locks.take(ctx, uid)
	if err != nil {
		return
	}
	defer release()
	s, _ := a.state(uid)
	ports := a.missing(uid)
	if len(ports) == 0 {
		return
	}
	err = a.cfg.Proxies.Add(ctx, s.workload, s.ns)
	if err != nil {
		// Without a proxy that could serve anybody this is no drift: the next one begins with a snapshot.
		a.cfg.Log.Debug("pod without a proxy", "pod", s.ref, "error", err)
		return
	}
	if len(a.missing(uid)) > 0 {
		err = a.cfg.Proxies.Del(ctx, uid)
		if err == nil {
			err = a.cfg.Proxies.Add(ctx, s.workload, s.ns)
		}
		if still := a.missing(uid); err == nil && len(still) > 0 {
			err = fmt.Errorf("the proxy says that it serves the pod; still nothing listens at %v", still)
		}
	}
	a.noteDrift(s, "proxy", fmt.Sprintf("nothing listened at %v", ports), err)
}

func (a *Agent) noteDrift(s state, kind, what string, err error) {
	a.cfg.Metrics.Drifted(kind, err == nil)
	a.mu.Lock()
	d := a.drifts[s.ref.UID]
	a.drifts[s.ref.UID] = drifted{times: d.times + 1, last: time.Now(), what: kind + ": " + what}
	a.mu.Unlock()
	note := fmt.Sprintf("%s %s: %s", time.Now().UTC().Format(time.RFC3339), kind, what)
	if err != nil {
		note += fmt.Sprintf("; not repaired: %v", err)
	}
	if noted := a.cfg.Annotator.Note(s.ref, note); noted != nil {
		a.cfg.Log.Warn("drift not written down", "pod", s.ref, "error", noted)
	}
	if err != nil {
		a.cfg.Log.Error("pod drifted, and is not repaired", "pod", s.ref, "uid", s.ref.UID, "kind", kind, "found", what, "error", err)
		return
	}
	a.cfg.Log.Warn("pod drifted, repaired", "pod", s.ref, "uid", s.ref.UID, "kind", kind, "found", what)
}

// watchers are one goroutine per enrolled pod that waits for changes of its rules. They belong to one goroutine.
type watchers struct {
	agent   *Agent
	running map[string]watcher
	done    sync.WaitGroup
}

type watcher struct {
	ns   *netns.NS // its own
	stop context.CancelFunc
}

// follow starts and stops watchers as pods come and go.
func (w *watchers) follow(ctx context.Context) {
	now := map[string]*netns.NS{}
	w.agent.mu.Lock()
	for uid, s := range w.agent.pods {
		if s.ns == nil {
			continue
		}
		if old, ok := w.running[uid]; ok && old.ns.Same(s.ns) {
			now[uid] = old.ns
			continue
		}
		if ns, err := s.ns.Dup(); err == nil {
			now[uid] = ns
		}
	}
	w.agent.mu.Unlock()
	for uid, old := range w.running {
		if now[uid] != old.ns {
			old.stop()
			delete(w.running, uid)
		}
	}
	for uid, ns := range now {
		if _, ok := w.running[uid]; !ok {
			w.start(ctx, uid, ns)
		}
	}
}

func (w *watchers) start(ctx context.Context, uid string, ns *netns.NS) {
	ctx, stop := context.WithCancel(ctx)
	w.running[uid] = watcher{ns, stop}
	w.done.Go(func() {
		defer ns.Close()
		a := w.agent
		err := a.cfg.Drift.Watch(ctx, ns, func() { a.checkRules(ctx, uid) })
		if err != nil {
			a.cfg.Log.Warn("changes of a pod's redirection are found by time alone", "uid", uid, "error", err)
		}
	})
}

func (w *watchers) stop() {
	for _, r := range w.running {
		r.stop()
	}
	w.done.Wait()
}
