// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
)

// narrow is a server that answers so many at a time, and hangs up on the others.
func narrow(t *testing.T, room int64, more func(open int64)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var open atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
					return
				}
				n := open.Add(1)
				if n > room {
					return
				}
				_, _ = io.WriteString(c, "{}\n")
				more(n)
				_, _ = io.Copy(io.Discard, c)
				open.Add(-1)
			}()
		}
	}()
	return fmt.Sprintf("tcp://%s", l.Addr())
}

// Whoever was answered keeps its place until everybody was answered or refused, however long each takes to come.
func TestHoldUntilAllAreDecided(t *testing.T) {
	const room, all = 3, 20
	res, err := Do(t.Context(), narrow(t, room, func(int64) {}), Options{Count: all, Concurrency: all, Hold: true})
	if err != nil || res.OK != room || res.Failed != all-room {
		t.Errorf("%d answered and %d refused (%v), want %d and %d: %v", res.OK, res.Failed, err, room, all-room, res.Errors)
	}
}

func TestHoldUntilStop(t *testing.T) {
	const all = 5
	stop := make(chan struct{})
	url := narrow(t, all, func(open int64) {
		if open == all {
			close(stop)
		}
	})
	res, err := Do(t.Context(), url, Options{Count: all, Concurrency: all, Hold: true, Stop: stop})
	if err != nil || res.OK != all {
		t.Errorf("%d of %d were held (%v): %v", res.OK, all, err, res.Errors)
	}
}

func TestHoldNeedsACrowd(t *testing.T) {
	for url, o := range map[string]Options{
		"http://127.0.0.1:1": {Hold: true, Count: 2, Concurrency: 2},
		"tcp://127.0.0.1:1":  {Hold: true, Count: 2, Concurrency: 1},
	} {
		if _, err := Do(t.Context(), url, o); err == nil {
			t.Errorf("%s with %+v was taken", url, o)
		}
	}
}
