// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

func fullRequest() *DeltaDiscoveryRequest {
	return &DeltaDiscoveryRequest{
		Node: &Node{ID: "ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local", Metadata: map[string]any{
			"NODE_NAME": "node1", "DRY": true, "N": 1.5, "LIST": []any{"a", nil}, "MAP": map[string]any{"k": "v"},
		}},
		TypeURL: TypeAddress, Subscribe: []string{"*", "/10.0.0.1"}, Unsubscribe: []string{"*"},
		InitialResourceVersions: map[string]string{"a": "1", "b": ""}, ResponseNonce: "n1",
		ErrorDetail: &Status{Code: 3, Message: "a: bad"},
	}
}

func fullResponse() *DeltaDiscoveryResponse {
	return &DeltaDiscoveryResponse{
		TypeURL: TypeAddress, Nonce: "n2", Removed: []string{"gone", "too"},
		Resources: []Resource{{Name: "a", Version: "1", Value: []byte("first")}, {Name: "empty", Version: "2", Value: []byte{}}},
	}
}

// Envoy's own types are the judge of both directions.
func TestRequestIsEnvoys(t *testing.T) {
	r := fullRequest()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var theirs discovery.DeltaDiscoveryRequest
	if err := proto.Unmarshal(b, &theirs); err != nil {
		t.Fatal(err)
	}
	got := &DeltaDiscoveryRequest{
		Node:    &Node{ID: theirs.GetNode().GetId(), Metadata: theirs.GetNode().GetMetadata().AsMap()},
		TypeURL: theirs.GetTypeUrl(), Subscribe: theirs.GetResourceNamesSubscribe(), Unsubscribe: theirs.GetResourceNamesUnsubscribe(),
		InitialResourceVersions: theirs.GetInitialResourceVersions(), ResponseNonce: theirs.GetResponseNonce(),
		ErrorDetail: &Status{Code: theirs.GetErrorDetail().GetCode(), Message: theirs.GetErrorDetail().GetMessage()},
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Error("their reading of ours:", diff)
	}
	if b, err = proto.Marshal(&theirs); err != nil {
		t.Fatal(err)
	}
	if got, err = DecodeRequest(b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Error("our reading of theirs:", diff)
	}
}

func TestResponseIsEnvoys(t *testing.T) {
	r := fullResponse()
	var theirs discovery.DeltaDiscoveryResponse
	if err := proto.Unmarshal(r.Encode(), &theirs); err != nil {
		t.Fatal(err)
	}
	if theirs.GetResources()[0].GetResource().GetTypeUrl() != TypeAddress {
		t.Errorf("type of the resource %q", theirs.GetResources()[0].GetResource().GetTypeUrl())
	}
	theirs.SystemVersionInfo = "ignored"
	theirs.RemovedResourceNames = []*discovery.ResourceName{{Name: "ignored"}}
	b, err := proto.Marshal(&theirs)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeResponse(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Error(diff)
	}
}

func TestResponseInPieces(t *testing.T) {
	b := fullResponse().Encode()
	for size := 1; size <= len(b); size++ {
		var pieces mem.BufferSlice
		for rest := b; len(rest) > 0; {
			n := min(size, len(rest))
			pieces = append(pieces, mem.SliceBuffer(rest[:n]), mem.SliceBuffer(nil))
			rest = rest[n:]
		}
		r := &received{}
		if err := r.decode(pieces); err != nil {
			t.Fatalf("pieces of %d: %v", size, err)
		}
		if diff := cmp.Diff(fullResponse(), &r.DeltaDiscoveryResponse); diff != "" {
			t.Fatalf("pieces of %d: %s", size, diff)
		}
	}
}

func TestBadEnvelopes(t *testing.T) {
	good := fullResponse().Encode()
	for name, b := range map[string][]byte{
		"cut":            good[:len(good)-1],
		"cut in a tag":   {0x92},
		"long number":    bytes.Repeat([]byte{0x80}, 11),
		"no field":       {0x02, 0x00},
		"group":          {0x13},
		"no UTF-8":       {0x2a, 0x01, 0xff},
		"length beyond":  {0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"resource is no": {0x12, 0x01, 0xff},
	} {
		if r, err := DecodeResponse(b); err == nil {
			t.Errorf("%s: accepted as %+v", name, r)
		}
	}
	for name, b := range map[string][]byte{"no UTF-8": {0x12, 0x01, 0xff}, "metadata": {0x0a, 0x03, 0x1a, 0x01, 0xff}, "cut": {0x12, 0x05}} {
		if r, err := DecodeRequest(b); err == nil {
			t.Errorf("request, %s: accepted as %+v", name, r)
		}
	}
	if _, err := (&DeltaDiscoveryRequest{Node: &Node{Metadata: map[string]any{"f": func() {}}}}).Encode(); err == nil {
		t.Error("metadata that is not JSON: accepted")
	}
}

func FuzzDeltaRequest(f *testing.F) {
	b, err := fullRequest().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRequest(b)
		if err != nil {
			return
		}
		once, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeRequest(once)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := again.Encode(); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%x became %x, %v", once, twice, err)
		}
	})
}

func FuzzDeltaResponse(f *testing.F) {
	f.Add(fullResponse().Encode(), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		r, err := DecodeResponse(b)
		var pieces mem.BufferSlice
		for rest := b; len(rest) > 0; {
			n := min(int(size)+1, len(rest))
			pieces = append(pieces, mem.SliceBuffer(rest[:n]))
			rest = rest[n:]
		}
		inPieces := &received{}
		if perr := inPieces.decode(pieces); (perr == nil) != (err == nil) {
			t.Fatalf("in one piece: %v; in several: %v", err, perr)
		}
		if err != nil {
			return
		}
		if diff := cmp.Diff(r, &inPieces.DeltaDiscoveryResponse); diff != "" {
			t.Fatal(diff)
		}
		for i := range r.Resources {
			if r.Resources[i].Value == nil {
				r.Resources[i].Value = []byte{} // we always send a value
			}
		}
		again, err := DecodeResponse(r.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func BenchmarkDecodeResponse(b *testing.B) {
	r := &DeltaDiscoveryResponse{TypeURL: TypeAddress}
	_, value, err := EncodeWorkload(fullWorkload())
	if err != nil {
		b.Fatal(err)
	}
	for i := range 10000 {
		r.Resources = append(r.Resources, Resource{Name: fmt.Sprintf("Kubernetes//Pod/shop/cart-%d", i), Version: strings.Repeat("0", 16), Value: value})
	}
	whole := r.Encode()
	var pieces mem.BufferSlice
	for rest := whole; len(rest) > 0; {
		n := min(16<<10, len(rest))
		pieces = append(pieces, mem.SliceBuffer(rest[:n]))
		rest = rest[n:]
	}
	b.SetBytes(int64(len(whole)))
	b.ReportAllocs()
	for b.Loop() {
		if err := (&received{}).decode(pieces); err != nil {
			b.Fatal(err)
		}
	}
}
