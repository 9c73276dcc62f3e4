// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func TestWatchTellsOfEveryChange(t *testing.T) {
	ns := nstest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- Watch(ctx, ns, func() { told <- struct{}{} }) }()
	plan := NewPlan(Options{IPv4: true, IPv6: true})
	expect := func(what string) {
		t.Helper()
		select {
		case <-told:
		case err := <-done:
			t.Fatalf("%s: the watch ended: %v", what, err)
		case <-time.After(10 * time.Second):
			t.Fatal("not told:", what)
		}
	}
	for { // the watch may not stand yet
		if _, err := Apply(ctx, ns, plan); err != nil {
			t.Fatal(err)
		}
		select {
		case <-told:
		case <-time.After(200 * time.Millisecond):
			if err := Remove(ctx, ns); err != nil {
				t.Fatal(err)
			}
			continue
		}
		break
	}
	for range 3 {
		if err := Remove(ctx, ns); err != nil {
			t.Fatal(err)
		}
		expect("removed")
		if changed, err := Apply(ctx, ns, plan); err != nil || !changed {
			t.Fatal(changed, err)
		}
		expect("applied")
	}
	if changed, err := Apply(ctx, ns, plan); err != nil || changed {
		t.Fatal(changed, err)
	}
	select {
	case <-told:
		t.Error("told of an Apply that wrote nothing")
	case <-time.After(3 * settle):
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
