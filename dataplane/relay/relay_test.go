// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// start relays between a client and a server and returns their ends.
func start(ctx context.Context, t testing.TB) (client, server *net.TCPConn, result chan Result) {
	client, down := tcpPair(t)
	server, up := tcpPair(t)
	result = make(chan Result, 1)
	go func() { result <- Copy(ctx, down, up) }()
	return client, server, result
}

func await(t testing.TB, result chan Result) Result {
	t.Helper()
	select {
	case r := <-result:
		return r
	case <-time.After(20 * time.Second):
		t.Fatal("Copy does not return")
		return Result{}
	}
}

func TestCopyHalfClose(t *testing.T) {
	client, server, result := start(context.Background(), t)
	want := make([]byte, 3<<20)
	rand.Read(want)
	go func() {
		client.Write(want)
		client.CloseWrite()
	}()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("server got %d bytes, %v", len(got), err)
	}
	server.Write([]byte("answer")) // after the client's end
	server.Close()
	answer, err := io.ReadAll(client)
	if string(answer) != "answer" || err != nil {
		t.Errorf("client got %q, %v", answer, err)
	}
	if diff := cmp.Diff(Result{BytesUp: 3 << 20, BytesDown: 6}, await(t, result)); diff != "" {
		t.Error(diff)
	}
}

func TestCopyPassesResetsOn(t *testing.T) {
	tests := map[string]func(client, server *net.TCPConn) (breaks, sees *net.TCPConn){
		"client": func(c, s *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return c, s },
		"server": func(c, s *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return s, c },
	}
	for name, pick := range tests {
		t.Run(name, func(t *testing.T) {
			client, server, result := start(context.Background(), t)
			breaks, sees := pick(client, server)
			breaks.SetLinger(0)
			breaks.Close()
			if _, err := io.Copy(io.Discard, sees); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other side saw %v", err)
			}
			if r := await(t, result); !r.Reset || r.Err != nil {
				t.Errorf("result %+v, want a reset that counts as normal", r)
			}
		})
	}
}

func TestCopyIsCutByContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	client, _, result := start(ctx, t)
	reason := errors.New("pod deleted")
	cancel(reason)
	if r := await(t, result); !errors.Is(r.Err, reason) || !r.Reset {
		t.Errorf("result %+v", r)
	}
	if _, err := io.Copy(io.Discard, client); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client saw %v", err)
	}
}

func TestErrorNamesTheSide(t *testing.T) {
	err := error(&Error{Side: Upstream, Op: "read", Err: io.ErrClosedPipe})
	if got := err.Error(); got != "read upstream: io: read/write on closed pipe" {
		t.Errorf("%q", got)
	}
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Error("the cause is hidden")
	}
}

func BenchmarkCopy(b *testing.B) {
	client, server, result := start(context.Background(), b)
	const unit = 1 << 20
	b.SetBytes(unit)
	b.ReportAllocs()
	go func() {
		buf := make([]byte, unit)
		for range b.N {
			client.Write(buf)
		}
		client.CloseWrite()
	}()
	n, err := io.Copy(io.Discard, server)
	if err != nil || n != int64(b.N)*unit {
		b.Fatal(n, err)
	}
	server.Close()
	await(b, result)
}
