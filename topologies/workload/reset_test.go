// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"testing"
	"time"
)

// A reset is seen as one on either side, and an orderly end as none.
func TestResets(t *testing.T) {
	url := fmt.Sprintf("tcp://127.0.0.1:%d", startServer(t)[TCP])
	call := func(o Options) Call {
		t.Helper()
		res, err := Do(t.Context(), url, o)
		if err != nil {
			t.Fatal(err)
		}
		return res.First()
	}
	for range 20 { // however soon the reset comes
		if c := call(Options{Reset: true, Size: 1000}); !c.OK || c.Seen.Ended != ClassReset {
			t.Fatalf("client's reset: %+v, seen %+v", c, c.Seen)
		}
		if c := call(Options{PeerReset: true, Download: 1000}); c.OK || c.Class != ClassReset {
			t.Fatalf("server's reset: %+v", c)
		}
	}
	if c := call(Options{HalfClose: true, Size: 1000, Download: 1000, MSS: 536}); !c.OK {
		t.Errorf("orderly end: %+v", c)
	}
	if _, err := Do(t.Context(), url, Options{Reset: true, HalfClose: true}); err == nil {
		t.Error("a connection was to be both reset and half-closed")
	}
}

func TestLateAnswerAndServers(t *testing.T) {
	url := fmt.Sprintf("http://127.0.0.1:%d", startServer(t)[HTTP])
	const wait = 30 * time.Millisecond
	res, err := Do(t.Context(), url+"/wait/"+wait.String(), Options{Count: 3})
	if err != nil {
		t.Fatal(err)
	}
	if res.OK != 3 || res.First().FirstByte < wait {
		t.Errorf("answers after %s: %+v", wait, res)
	}
	for server, n := range res.Servers {
		if n != 3 || len(res.Servers) != 1 {
			t.Errorf("%d calls answered by %q", n, server)
		}
	}
	if res, err := Do(t.Context(), url+"/wait/long", Options{}); err != nil || res.First().Status != 400 {
		t.Errorf("no duration: %+v, %v", res, err)
	}
}
