// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// stubSigner answers after delay with certificates of the test root's, or with err while that is set.
type stubSigner struct {
	delay time.Duration
	ttl   time.Duration
	root  *signing

	mu      sync.Mutex
	err     error
	calls   []string // service accounts, in the order of the calls
	times   []time.Time
	flying  int
	maximum int
}

func newStub(ttl time.Duration) *stubSigner {
	return &stubSigner{delay: 100 * time.Millisecond, ttl: ttl, root: fakeSigning()}
}

func (s *stubSigner) Sign(ctx context.Context, who mesh.Identity) (*Certificate, error) {
	s.mu.Lock()
	s.calls, s.times = append(s.calls, who.ServiceAccount), append(s.times, time.Now())
	s.flying++
	s.maximum = max(s.maximum, s.flying)
	s.mu.Unlock()
	timer := time.NewTimer(s.delay)
	defer timer.Stop()
	var err error
	select {
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	s.flying--
	if err == nil {
		err = s.err
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.root.certify(who, s.ttl)
}

func (s *stubSigner) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *stubSigner) log() ([]string, []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls), slices.Clone(s.times)
}

// run starts a cache of s in a bubble of false time; the returned function ends it.
func run(t *testing.T, s *stubSigner, cfg CacheConfig) (*Cache, func()) {
	t.Helper()
	cfg.Signer, cfg.Log = s, quiet
	c := NewCache(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return c, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestCacheSharesOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if cert, err := c.Get(t.Context(), id("shop", "web")); err != nil || cert.Identity != id("shop", "web") {
					t.Error(cert, err)
				}
			})
		}
		wg.Wait()
		if calls, _ := s.log(); len(calls) != 1 {
			t.Errorf("%d calls", len(calls))
		}
	})
}

func TestCacheFetchesTheMostUrgentFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Minute)
		s.delay = 5 * time.Second
		c, stop := run(t, s, CacheConfig{Concurrency: 1})
		defer stop()
		c.Prefetch(id("shop", "old")) // fetched at 5 s, to be refreshed at 35 s
		time.Sleep(34 * time.Second)
		c.Prefetch(id("shop", "blocker")) // has the only place until 39 s
		time.Sleep(2 * time.Second)
		c.Prefetch(id("shop", "new"))
		if _, err := c.Get(t.Context(), id("shop", "urgent")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second)
		calls, _ := s.log()
		if got, want := strings.Join(calls, " "), "old blocker urgent new old"; got != want {
			t.Errorf("order %q, want %q", got, want)
		}
	})
}

func TestCacheBoundsItsConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		for i := range 50 {
			c.Prefetch(id("shop", fmt.Sprint("sa", i)))
		}
		time.Sleep(2 * time.Second)
		if calls, _ := s.log(); len(calls) != 50 || s.maximum != 8 {
			t.Errorf("%d calls, at most %d at a time", len(calls), s.maximum)
		}
	})
}

func TestCacheRefreshesAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		c.Prefetch(id("shop", "web"))
		time.Sleep(3*time.Hour + 10*time.Minute)
		calls, times := s.log()
		if len(calls) != 7 {
			t.Fatalf("%d fetches in 190 minutes", len(calls))
		}
		if d := times[1].Sub(times[0]); d < 30*time.Minute-time.Second || d > 30*time.Minute+time.Second {
			t.Errorf("refreshed after %v", d)
		}
	})
}

func TestCacheKeepsTheOldCertificateThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		web := id("shop", "web")
		c.Prefetch(web)
		first, err := c.Get(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		s.fail(errors.New("authority is down"))
		time.Sleep(50 * time.Minute)
		if got, err := c.Get(t.Context(), web); err != nil || got != first {
			t.Fatalf("got %p, %v; want the old certificate", got, err)
		}
		if l := c.List(); len(l) != 1 || l[0].State != "Available" {
			t.Errorf("state %+v", l)
		}
		checkBackoff(t, s)
		time.Sleep(11 * time.Minute) // now it has expired
		_, err = c.Get(t.Context(), web)
		var u *UnavailableError
		if !errors.As(err, &u) || u.Identity != web || !strings.Contains(err.Error(), "authority is down") {
			t.Errorf("error %v", err)
		}
		if l := c.List(); l[0].State != "Unavailable: authority is down" {
			t.Errorf("state %q", l[0].State)
		}
		s.fail(nil)
		if _, err := c.Get(t.Context(), web); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
}

// checkBackoff looks at the waits between failures: doubling, bounded, shortened by at most half.
func checkBackoff(t *testing.T, s *stubSigner) {
	t.Helper()
	_, times := s.log()
	want := time.Second
	for i := 2; i < len(times); i++ {
		d := times[i].Sub(times[i-1]) - s.delay
		if d < want/2 || d > want+time.Millisecond {
			t.Errorf("wait %d was %v, want %v to %v", i-1, d, want/2, want)
		}
		want = min(2*want, 150*time.Second)
	}
	if len(times) < 10 {
		t.Errorf("%d fetches in 20 minutes of outage", len(times))
	}
}

func TestDemandCutsTheBackoffShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		s.fail(errors.New("authority is down"))
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		web := id("shop", "web")
		c.Prefetch(web)
		time.Sleep(20 * time.Minute) // waits are at their longest
		s.fail(nil)
		start := time.Now()
		if _, err := c.Get(t.Context(), web); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 6*time.Second {
			t.Errorf("waited %v", d)
		}
	})
}

func TestFailuresOfUnheldIdentitiesAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		s.fail(errors.New("not on this node"))
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		for range 20 {
			if _, err := c.Get(t.Context(), id("shop", "ghost")); err == nil {
				t.Fatal("got a certificate")
			}
		}
		_, times := s.log()
		if d := times[len(times)-1].Sub(times[0]); d < 20*time.Second {
			t.Errorf("%d fetches within %v", len(times), d)
		}
	})
}

func TestForgetCountsHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		web := id("shop", "web")
		c.Prefetch(web)
		c.Prefetch(web)
		time.Sleep(time.Second)
		c.Forget(web)
		if len(c.List()) != 1 {
			t.Error("dropped while a workload holds it")
		}
		c.Forget(web)
		if len(c.List()) != 0 {
			t.Error("kept after the last workload left")
		}
		c.Forget(web) // once too often: nothing
		time.Sleep(2 * time.Hour)
		if calls, _ := s.log(); len(calls) != 1 {
			t.Errorf("%d calls: refreshed though forgotten", len(calls))
		}
	})
}

func TestUnheldIdentitiesGoWithTheirCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		web := id("shop", "web")
		if _, err := c.Get(t.Context(), web); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Minute)
		if _, err := c.Get(t.Context(), web); err != nil { // past half life: its user has it refreshed
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if calls, _ := s.log(); len(calls) != 2 {
			t.Errorf("%d calls", len(calls))
		}
		time.Sleep(3 * time.Hour)
		if l := c.List(); len(l) != 0 {
			t.Errorf("still there: %+v", l)
		}
	})
}

func TestWaitsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		s.delay = 5 * time.Second
		c, stop := run(t, s, CacheConfig{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Get(ctx, id("shop", "web")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the deadline", err)
		}
		got := make(chan error, 1)
		go func() { _, err := c.Get(t.Context(), id("shop", "web")); got <- err }()
		synctest.Wait()
		stop()
		if err := <-got; err == nil {
			t.Error("a wait outlived the cache")
		}
		if _, err := c.Get(t.Context(), id("shop", "other")); !errors.Is(err, ErrCacheClosed) {
			t.Errorf("error %v, want %v", err, ErrCacheClosed)
		}
	})
}

// awaitStub is a stub whose authority comes back when told.
type awaitStub struct {
	*stubSigner
	back chan struct{}
}

func (s *awaitStub) Await(ctx context.Context, _ error) error {
	select {
	case <-s.back:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestAnAuthorityThatReturnsOnlyToFailIsGivenTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &awaitStub{newStub(time.Hour), make(chan struct{})}
		close(s.back) // reachable at any time, and fails all the same
		s.fail(errors.New("no"))
		c := NewCache(CacheConfig{Signer: s, Log: quiet})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		c.Prefetch(id("shop", "web"))
		time.Sleep(time.Hour)
		if calls, _ := s.log(); len(calls) > 120 {
			t.Errorf("%d calls in an hour", len(calls))
		}
		s.fail(nil)
		time.Sleep(150 * time.Second)
		if st := c.List(); len(st) != 1 || st[0].State != "Available" {
			t.Errorf("control: %+v", st)
		}
		cancel()
		<-done
	})
}

func TestRefreshReplacesEveryCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub(time.Hour)
		c, stop := run(t, s, CacheConfig{})
		defer stop()
		c.Prefetch(id("shop", "web"))
		c.Prefetch(id("shop", "cart"))
		time.Sleep(time.Second)
		before := c.List()
		c.Prefetch(id("shop", "late"))
		time.Sleep(50 * time.Millisecond) // it is being fetched, with what was trusted before
		c.Refresh()
		if _, err := c.Get(t.Context(), id("shop", "web")); err != nil {
			t.Error("the certificate is not in use meanwhile:", err)
		}
		time.Sleep(time.Second)
		for i, now := range c.List() {
			if now.Identity.ServiceAccount == "late" {
				continue
			}
			for _, old := range before {
				if old.Identity == now.Identity && old.Certificate == now.Certificate {
					t.Errorf("%d: %s was not fetched again", i, now.Identity)
				}
			}
		}
		calls, _ := s.log()
		if n := len(slices.DeleteFunc(calls, func(a string) bool { return a != "late" })); n != 2 {
			t.Errorf("the one that was under way was fetched %d times, want 2", n)
		}
		s.fail(errors.New("no"))
		c.Refresh()
		time.Sleep(200 * time.Millisecond)
		if _, err := c.Get(t.Context(), id("shop", "web")); err != nil {
			t.Error("a failed refresh took the certificate away:", err)
		}
	})
}
