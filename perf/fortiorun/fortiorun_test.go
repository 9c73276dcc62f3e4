// SPDX-License-Identifier: Apache-2.0

package fortiorun

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func TestRateIsKept(t *testing.T) {
	var n atomic.Int64
	res, err := Run(t.Context(), Options{Rate: 200, Workers: 2, Duration: 500 * time.Millisecond, Do: func(context.Context, int) error {
		n.Add(1)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if res.Count != n.Load() || res.Count < 60 || res.Count > 110 || res.Errors != 0 || res.FirstError != "" {
		t.Errorf("%d calls, %+v; want about 100", n.Load(), res)
	}
}

func TestNoRateMeansAsFastAsItGoes(t *testing.T) {
	var workers [2]atomic.Int64
	res, err := Run(t.Context(), Options{Workers: 2, Duration: 100 * time.Millisecond, Do: func(_ context.Context, w int) error {
		workers[w].Add(1)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if workers[0].Load() == 0 || workers[1].Load() == 0 || res.PerSecond < 10_000 {
		t.Errorf("%d and %d calls, %+v", workers[0].Load(), workers[1].Load(), res)
	}
	if l := res.Latency; l.P50Micros <= 0 || l.P99Micros < l.P50Micros || l.MaxMicros < l.P99Micros {
		t.Errorf("latency %+v", l)
	}
}

func TestErrorsAreCounted(t *testing.T) {
	res, err := Run(t.Context(), Options{Rate: 100, Duration: 200 * time.Millisecond, Do: func(context.Context, int) error { return errors.New("no") }})
	if err != nil || res.Errors != res.Count || res.Errors == 0 || res.FirstError != "no" {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestEndOfContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	_, err := Run(ctx, Options{Duration: time.Minute, Do: func(context.Context, int) error { cancel(); return nil }})
	if !errors.Is(err, context.Canceled) || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}
