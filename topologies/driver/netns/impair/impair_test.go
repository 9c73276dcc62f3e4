// SPDX-License-Identifier: Apache-2.0

package impair

import (
	"slices"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// The nth packet has the same fate in every run of a seed, another with another seed or in the other direction.
func TestFateFollowsFromSeed(t *testing.T) {
	draw := func(seed, direction uint64) (out []verdict) {
		f := newFate(lab.Impairment{Delay: time.Second, Jitter: time.Second, Loss: 0.3, Duplicate: 0.3, Reorder: 0.3, Seed: seed}, direction)
		for n := range 200 {
			out = append(out, f.decide(time.Unix(int64(n), 0)))
		}
		return out
	}
	if !slices.Equal(draw(7, 0), draw(7, 0)) {
		t.Error("two runs of one seed differ")
	}
	if slices.Equal(draw(7, 0), draw(8, 0)) || slices.Equal(draw(7, 0), draw(7, 1)) {
		t.Error("seed or direction make no difference")
	}
}

func TestFateKeepsShares(t *testing.T) {
	const n = 100_000
	f := newFate(lab.Impairment{Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.05, Duplicate: 0.02, Reorder: 0.1}, 0)
	var lost, twice, overtook int
	var last time.Time
	for i := range n {
		now := time.Unix(0, int64(i)*int64(time.Microsecond))
		v := f.decide(now)
		add64(&lost, v.lost)
		add64(&twice, v.twice)
		add64(&overtook, v.overtakes)
		if v.overtakes {
			if !v.due.Equal(now) {
				t.Fatalf("packet %d overtakes, yet waits %s", i, v.due.Sub(now))
			}
			continue
		}
		if wait := v.due.Sub(now); v.due.Before(last) || wait < 15*time.Millisecond || wait > 25*time.Millisecond+time.Millisecond {
			t.Fatalf("packet %d waits %s, the one before is due %s", i, wait, last)
		}
		last = v.due
	}
	for _, x := range []struct {
		name string
		got  int
		want float64
	}{{"lost", lost, 0.05}, {"sent twice", twice, 0.02}, {"overtook", overtook, 0.1}} {
		// Five standard deviations of a share of that size among n are less than 0.005.
		if share := float64(x.got) / n; share < x.want-0.005 || share > x.want+0.005 {
			t.Errorf("%s: a share of %.4f, want %.2f", x.name, share, x.want)
		}
	}
}

func add64(n *int, yes bool) {
	if yes {
		*n++
	}
}

func TestQueueIsOrderedAndBounded(t *testing.T) {
	var q queue
	at := time.UnixMilli
	for _, p := range []struct {
		name string
		due  int64
	}{{"b", 20}, {"c", 20}, {"a", 10}, {"d", 30}} {
		q.put([]byte(p.name), at(p.due))
	}
	got := ""
	for !q.next().After(at(20)) {
		data, _ := q.take(at(20))
		got += string(data)
	}
	if _, ok := q.take(at(29)); ok || got != "abc" || !q.next().Equal(at(30)) {
		t.Errorf("taken %q, next due %s", got, q.next())
	}
	n := 0
	for q.put(make([]byte, 1<<20), at(0)) {
		n++
	}
	if n != maxQueued>>20-1 {
		t.Errorf("%d MiB fit beside a byte, want %d", n, maxQueued>>20-1)
	}
	for len(q.list) > 0 {
		q.take(at(30))
	}
	if q.bytes != 0 || !q.next().IsZero() {
		t.Errorf("empty, yet %d bytes, next %s", q.bytes, q.next())
	}
}
