// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"crypto/sha256"
	"crypto/tls"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestCompanyIsLearnt: it is tried while it comes, seldom once it has not come for a while, and not after it took long.
func TestCompanyIsLearnt(t *testing.T) {
	tries := func(c *company, now time.Duration, came bool, took time.Duration) (n int) {
		for range 10 * aloneTry {
			if c.likely(now) {
				n++
				c.learn(came, took, now)
			}
		}
		return n
	}
	for _, tt := range []struct {
		name        string
		came        bool
		took        time.Duration
		least, most int
	}{
		{"others come", true, 0, 10 * aloneTry, 10 * aloneTry},
		{"nobody comes", false, 0, aloneMost + 9, aloneMost + 10},
		{"it takes long", true, 2 * companyMost, 1, 1},
	} {
		var c company
		if n := tries(&c, 0, tt.came, tt.took); n < tt.least || n > tt.most {
			t.Errorf("%s: %d of %d tries, want %d to %d", tt.name, n, 10*aloneTry, tt.least, tt.most)
		}
		if n := tries(&c, companyRest, true, 0); n < 9*aloneTry {
			t.Errorf("%s: %d of %d tries once they come again", tt.name, n, 10*aloneTry)
		}
	}
}

// TestLittleIsWrittenTogether: what goroutines seal that can run at once is one write. Each 61st time Go's scheduler takes up who
// has yielded before who has not run yet, so that of two tries in a row one may fail.
func TestLittleIsWrittenTogether(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := int64(sealedLen(5) + sealedLen(6))
	if got, again := togetherWritten(t), togetherWritten(t); got != want && again != want {
		t.Errorf("%d and %d bytes to write, want both records: %d", got, again, want)
	}
}

// togetherWritten is how much there is to write once the first of two goroutines has gathered what others have.
func togetherWritten(t *testing.T) int64 {
	t.Helper()
	peer, err := net.Dial("tcp", hold(t).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	r, err := newRecordConn(peer.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	if r.sealer, err = newProtection(tls.TLS_AES_128_GCM_SHA256, make([]byte, sha256.Size)); err != nil {
		t.Fatal(err)
	}
	var writing sync.Mutex // as conn.wmu
	write := func(s string) {
		writing.Lock()
		defer writing.Unlock()
		r.seal(recordData, []byte(s))
		r.publish()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		write("second")
	}()
	write("first")
	r.gather()
	got := r.unflushed.Load()
	<-done
	return got
}
