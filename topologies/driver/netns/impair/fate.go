// SPDX-License-Identifier: Apache-2.0

package impair

import (
	"math/rand/v2"
	"time"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// fate decides what becomes of packets, in their order.
type fate struct {
	lab.Impairment
	rng  *rand.Rand
	last time.Time // the latest time that an ordered packet is due
}

func newFate(i lab.Impairment, direction uint64) *fate {
	return &fate{Impairment: i, rng: rand.New(rand.NewPCG(i.Seed, direction))}
}

// verdict is about one packet.
type verdict struct {
	lost, twice, overtakes bool
	due                    time.Time
}

// decide is called once per packet. It draws the same numbers for each, so that one share does not shift the others' draws.
func (f *fate) decide(now time.Time) verdict {
	loss, dup, order, spread := f.rng.Float64(), f.rng.Float64(), f.rng.Float64(), f.rng.Float64()
	v := verdict{lost: loss < f.Loss, twice: dup < f.Duplicate}
	if order < f.Reorder {
		v.overtakes, v.due = true, now
		return v
	}
	v.due = now.Add(f.Delay + time.Duration((2*spread-1)*float64(f.Jitter)))
	if v.due.Before(f.last) {
		v.due = f.last // jitter alone changes no order
	}
	f.last = v.due
	return v
}
