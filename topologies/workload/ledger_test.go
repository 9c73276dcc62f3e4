// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"testing"
	"time"
)

func TestLedgerListsEveryConnection(t *testing.T) {
	start := time.Now()
	call := func(second int, reused bool, class Class) Call {
		return Call{Start: start.Add(time.Duration(second) * time.Second), Latency: time.Second / 2, Reused: reused, OK: class == "", Class: class}
	}
	var kept, each, none ledger
	for _, c := range []Call{
		call(0, false, ""), call(1, true, ""), call(2, true, ClassReset), // works, then is cut
		call(3, false, ClassRefused), // does not come about
		call(4, false, ""),           // goes on
	} {
		kept.note(c, Options{Ledger: true, KeepOpen: true})
		each.note(c, Options{Ledger: true})
		none.note(c, Options{KeepOpen: true})
	}
	got := kept.done()
	if len(got) != 3 || len(each.done()) != 5 || len(none.done()) != 0 {
		t.Fatalf("%d kept, %d one each, %d unasked: %+v", len(got), len(each.ended), len(none.ended), got)
	}
	if c := got[0]; !c.Cut() || c.Calls != 2 || c.Class != ClassReset || c.Ended.Sub(c.Opened) != 5*time.Second/2 {
		t.Errorf("cut: %+v", c)
	}
	if c := got[1]; c.Cut() || c.Calls != 0 || c.Class != ClassRefused {
		t.Errorf("refused: %+v", c)
	}
	if c := got[2]; c.Cut() || c.Calls != 1 || c.Class != "" || c.Ended.IsZero() {
		t.Errorf("closed by the caller: %+v", c)
	}
}
