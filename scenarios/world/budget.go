// SPDX-License-Identifier: Apache-2.0

package world

import (
	"time"

	"github.com/onsi/gomega"
)

// Budget names every bound on waiting that scenarios use. A budget bounds how long a condition may take to come true;
// none of them is slept through, so that each is generous: what takes 50 ms on a quiet machine may take seconds on one
// that has other work.
var Budget = struct {
	Up          time.Duration // a lab, from nothing to every pod ready
	Down        time.Duration // a lab's end
	Spec        time.Duration // one scenario
	LongSpec    time.Duration // one that moves a gigabyte or runs traffic through a change
	Call        time.Duration // one call that must be answered
	Evidence    time.Duration // log records and metrics of a connection that has ended
	Propagation time.Duration // a changed object, until every proxy acts on it
	Settle      time.Duration // before a call, connections that have ended until they are counted as closed, while others may last
	Poll        time.Duration // between two looks at a condition
}{
	Up:          120 * time.Second,
	Down:        60 * time.Second,
	Spec:        180 * time.Second,
	LongSpec:    300 * time.Second,
	Call:        20 * time.Second,
	Evidence:    20 * time.Second,
	Propagation: 30 * time.Second,
	Settle:      250 * time.Millisecond,
	Poll:        10 * time.Millisecond,
}

// patient are the drivers whose labs are slower than namespaces: a cluster has to be made, pods go through a scheduler, kubelet
// and a container runtime, and what a scenario asks goes through an API server.
var patient = map[string]int{"kind": 4, "kube": 4}

// stretch multiplies the budgets for a driver, and the rests between looks, which cost a cluster more than a namespace. It comes
// before the scenarios are declared, which read them.
func stretch(driver string) {
	n := time.Duration(max(1, patient[driver]))
	for _, d := range []*time.Duration{&Budget.Up, &Budget.Down, &Budget.Spec, &Budget.LongSpec, &Budget.Evidence, &Budget.Propagation, &Budget.Poll} {
		*d *= n
	}
	gomega.SetDefaultEventuallyPollingInterval(Budget.Poll)
	gomega.SetDefaultConsistentlyPollingInterval(Budget.Poll)
}
