// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

// LeaseName is that of the Lease whose holder writes.
const LeaseName = "ambientlab-control-writer"

// LeaseConfig says who stands for election, and how fast one who is gone is replaced.
type LeaseConfig struct {
	Namespace string
	Holder    string        // the name of this process, of no other
	Duration  time.Duration // how long one who does not renew stays holder; 0 means 15 s
	Renew     time.Duration // how long the holder tries to renew before it stops writing; 0 means 10 s
	Retry     time.Duration // how often each tries; 0 means 2 s
	Log       *slog.Logger
}

// Writer elects the one replica that writes. What it writes is the same whoever does it, so that two at once, for the moment
// in which one learns that it lost the Lease, do no harm.
type Writer struct {
	cfg     LeaseConfig
	client  coordinationv1client.CoordinationV1Interface
	leading atomic.Bool
}

// NewWriter makes it; it does no I/O.
func NewWriter(c *kube.Cluster, cfg LeaseConfig) (*Writer, error) {
	cfg.Duration = cmp.Or(cfg.Duration, 15*time.Second)
	cfg.Renew = cmp.Or(cfg.Renew, 10*time.Second)
	cfg.Retry = cmp.Or(cfg.Retry, 2*time.Second)
	config := c.Config()
	config.Timeout = cfg.Renew / 2 // one request that hangs must not cost the Lease
	client, err := coordinationv1client.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("elect writer: %w", err)
	}
	return &Writer{cfg: cfg, client: client}, nil
}

// Leading reports whether this process is the one that writes.
func (w *Writer) Leading() bool { return w.leading.Load() }

// Run does all duties while this process holds the Lease, again and again, until ctx ends. A duty lasts until its context
// ends, which is when the Lease is lost.
func (w *Writer) Run(ctx context.Context, duties ...func(context.Context)) error {
	won := make(chan context.Context)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: w.cfg.Namespace, Name: LeaseName}, Client: w.client,
			LockConfig: resourcelock.ResourceLockConfig{Identity: w.cfg.Holder},
		},
		LeaseDuration: w.cfg.Duration, RenewDeadline: w.cfg.Renew, RetryPeriod: w.cfg.Retry, ReleaseOnCancel: true, Name: LeaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(term context.Context) {
				select {
				case won <- term:
				case <-term.Done():
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("elect writer: %w", err)
	}
	g, ctx := errgroup.WithContext(klog.NewContext(ctx, logr.FromSlogHandler(&once{Handler: w.cfg.Log.Handler()})))
	g.Go(func() error {
		for ctx.Err() == nil {
			elector.Run(ctx)
		}
		return nil
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case term := <-won:
				w.lead(term, duties)
			}
		}
	})
	return g.Wait()
}

// once passes on what the elector says of an error, until it says something else: it repeats itself at each attempt.
type once struct {
	slog.Handler
	mu   sync.Mutex // guards last
	last string
}

// Handle implements slog.Handler.
func (o *once) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return nil
	}
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	o.mu.Lock()
	repeated := text == o.last
	o.last = text
	o.mu.Unlock()
	if repeated {
		return nil
	}
	r.Level = slog.LevelWarn
	return o.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler; the elector's own are of no use.
func (o *once) WithAttrs([]slog.Attr) slog.Handler { return o }

// WithGroup implements slog.Handler.
func (o *once) WithGroup(string) slog.Handler { return o }

func (w *Writer) lead(term context.Context, duties []func(context.Context)) {
	w.cfg.Log.Info("this replica writes statuses and roots now", "lease", w.cfg.Namespace+"/"+LeaseName, "holder", w.cfg.Holder)
	w.leading.Store(true)
	var g errgroup.Group
	for _, d := range duties {
		g.Go(func() error { d(term); return nil })
	}
	_ = g.Wait()
	w.leading.Store(false)
	w.cfg.Log.Info("this replica does not write any more", "holder", w.cfg.Holder)
}
