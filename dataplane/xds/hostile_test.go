// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

func TestResourcesThatSayNothing(t *testing.T) {
	a, h, s := subscribed(t)
	s.send(TypeAddress, "n1", nil, "a", "1", "A", "b", "1", "B")
	s.request()
	for _, tc := range []struct {
		name    string
		removed []string
		up      []string
		nack    []string
	}{
		{"twice in one response", nil, []string{"a", "2", "A2", "a", "3", "A3", "c", "1", "C"}, []string{"a: 2 times in one response"}},
		{"there and removed", []string{"b"}, []string{"b", "2", "B2", "d", "1", "D"}, []string{"b: both there and removed"}},
		{"without a name", nil, []string{"", "1", "X"}, []string{"(unnamed): no name"}},
		{"removed, and never there", []string{"nobody"}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.t = t
			s.send(TypeAddress, tc.name, tc.removed, tc.up...)
			r := s.request()
			if r.GetResponseNonce() != tc.name || (r.GetErrorDetail() != nil) != (tc.nack != nil) {
				t.Fatalf("answered with %v", r)
			}
			for _, part := range tc.nack {
				if strings.Count(r.GetErrorDetail().GetMessage(), part) != 1 {
					t.Errorf("message %q misses %q", r.GetErrorDetail().GetMessage(), part)
				}
			}
		})
	}
	s.t = t
	h.expect(t, map[string]string{"Address a": "A", "Address b": "B", "Address c": "C", "Address d": "D"})
	s.end <- nil
	if diff := cmp.Diff(map[string]string{"a": "1", "b": "1", "c": "1", "d": "1"}, a.next(t).request().GetInitialResourceVersions()); diff != "" {
		t.Error("held on reconnect:", diff)
	}
}

func TestAResponseWithoutANonceEndsTheStream(t *testing.T) {
	a, h, s := subscribed(t)
	s.send(TypeAddress, "n1", nil, "a", "1", "A")
	s.request()
	if err := s.s.Send(&discovery.DeltaDiscoveryResponse{TypeUrl: TypeAddress, RemovedResources: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	if r := a.next(t).request(); !cmp.Equal(map[string]string{"a": "1"}, r.GetInitialResourceVersions()) {
		t.Errorf("came back with %v", r)
	}
	h.expect(t, map[string]string{"Address a": "A"})
}

// rawCodec sends buffers as they are.
type rawCodec struct{ encoding.CodecV2 }

func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.(mem.BufferSlice); ok {
		return b, nil
	}
	return c.CodecV2.Marshal(v)
}

// TestMessagesThatAreNone: what cannot be decoded at all, or is larger than a message may be, ends the stream, costs no
// memory and changes nothing.
func TestMessagesThatAreNone(t *testing.T) {
	page := mem.SliceBuffer(make([]byte, 1<<20))
	for name, message := range map[string]mem.BufferSlice{
		"garbage":   {mem.SliceBuffer([]byte{0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, 1})},
		"truncated": {mem.SliceBuffer([]byte{0x12, 5, 1})},
		"oversized": slices.Repeat(mem.BufferSlice{page}, MaxMessageBytes>>20+1),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			first := make(chan *DeltaDiscoveryRequest, 100)
			handler := func(_ any, s grpc.ServerStream) error {
				r := &DeltaDiscoveryRequest{}
				if err := s.RecvMsg(r); err != nil {
					return err
				}
				first <- r
				if err := s.SendMsg(&DeltaDiscoveryResponse{TypeURL: TypeAddress, Nonce: "n", Resources: []Resource{{Name: "a", Version: "1", Value: []byte("A")}}}); err != nil {
					return err
				}
				if err := s.RecvMsg(&DeltaDiscoveryRequest{}); err != nil {
					return err
				}
				if err := s.SendMsg(message); err != nil {
					return err
				}
				<-s.Context().Done()
				return nil
			}
			srv := grpc.NewServer(append(ServerOptions(), grpc.MaxSendMsgSize(1<<30), grpc.ForceServerCodecV2(rawCodec{Codec()}), grpc.UnknownServiceHandler(handler))...)
			done := make(chan struct{})
			go func() { defer close(done); srv.Serve(l) }()
			defer func() { srv.Stop(); <-done }()
			h := &collector{}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start(t, ClientConfig{Address: "http://" + l.Addr().String(), Handler: h, Types: []string{TypeAddress}})
			for i := range 3 {
				r := <-first
				if held := len(r.InitialResourceVersions); held != min(i, 1) {
					t.Errorf("stream %d begins with %d held", i, held)
				}
			}
			h.expect(t, map[string]string{"Address a": "A"})
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
				t.Errorf("%d MiB were allocated for messages that are none", grown>>20)
			}
		})
	}
}

func TestTheReturnOfAControlPlaneIsNoticed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	away := make(chan string, 1000)
	h := &collector{}
	// Streams that fail wait an hour; connections that do not come about must not.
	c, err := NewClient(ClientConfig{
		Address: "http://" + addr, Handler: h, Types: []string{TypeAddress}, Log: quiet, BackoffMin: time.Millisecond, BackoffMax: time.Hour,
		Metrics: Metrics{Terminated: func(r string) { away <- r }},
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, c)
	for range 4 { // an old client's back-off would have doubled with each
		if r := <-away; r != "ConnectionError" {
			t.Errorf("reason %q", r)
		}
	}
	a := &ads{streams: make(chan *adsStream, 10)}
	if l, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(ServerOptions()...)
	discovery.RegisterAggregatedDiscoveryServiceServer(srv, a)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	back := time.Now()
	s := a.next(t)
	s.request()
	if d := time.Since(back); d > 10*time.Second {
		t.Errorf("noticed after %s", d)
	}
}

func TestThriceIsSaidOnce(t *testing.T) {
	same := []Resource{{Name: "a", Value: []byte{}}, {Name: "a", Value: []byte{}}, {Name: "a", Value: []byte{}}}
	r := &received{anyType: []byte(TypeAddress), DeltaDiscoveryResponse: DeltaDiscoveryResponse{TypeURL: TypeAddress, Resources: same}}
	good, bad := r.split()
	if len(good) != 0 || len(bad) != 1 || !strings.Contains(bad[0].Err.Error(), "3 times") {
		t.Errorf("good %v, bad %v", good, bad)
	}
}
