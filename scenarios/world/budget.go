// SPDX-License-Identifier: Apache-2.0

package world

import "time"

// Budget names every bound on waiting that scenarios use. A budget bounds how long a condition may take to come true;
// none of them is slept through.
var Budget = struct {
	Up          time.Duration // a lab, from nothing to every pod ready
	Down        time.Duration // a lab's end
	Spec        time.Duration // one scenario
	LongSpec    time.Duration // one that moves a gigabyte or runs traffic through a change
	Evidence    time.Duration // log records and metrics of a connection that has ended
	Propagation time.Duration // a changed object, until every proxy acts on it
	Settle      time.Duration // connections that have ended, until they are counted as closed
	Poll        time.Duration // between two looks at a condition
}{
	Up:          60 * time.Second,
	Down:        20 * time.Second,
	Spec:        60 * time.Second,
	LongSpec:    180 * time.Second,
	Evidence:    5 * time.Second,
	Propagation: 10 * time.Second,
	Settle:      250 * time.Millisecond,
	Poll:        10 * time.Millisecond,
}
