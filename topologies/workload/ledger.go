// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"slices"
	"time"
)

// ledger writes down the connections of one session. It is used by one goroutine.
type ledger struct {
	open  *Connection // the one that goes on
	ended []Connection
}

// note takes in a call that has ended.
func (l *ledger) note(c Call, o Options) {
	if !o.Ledger {
		return
	}
	if l.open == nil || !c.Reused {
		l.open = &Connection{Opened: c.Start, LocalAddr: c.LocalAddr}
	}
	l.open.Ended = c.Start.Add(c.Latency)
	if c.OK {
		l.open.Calls++
	} else {
		l.open.Class, l.open.Error = c.Class, c.Error
	}
	if !c.OK || !o.KeepOpen {
		l.close()
	}
}

func (l *ledger) close() {
	l.ended = append(l.ended, *l.open)
	l.open = nil
}

// done is all connections; the caller closes what goes on.
func (l *ledger) done() []Connection {
	if l.open != nil {
		l.open.Ended = time.Now()
		l.close()
	}
	return l.ended
}

// enter takes a session's connections in.
func (c *collector) enter(list []Connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.res.Connections = append(c.res.Connections, list[:min(len(list), KeptConnections-len(c.res.Connections))]...)
	slices.SortStableFunc(c.res.Connections, func(a, b Connection) int { return a.Opened.Compare(b.Opened) })
}
