// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // what Codec falls back to
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
)

// MaxMessageBytes bounds a discovery message: responses, and requests that list what a large mesh's client holds.
const MaxMessageBytes = 200 << 20

// Codec is gRPC's view of the envelope, for a client's calls or for a whole server: messages that are not of this package
// are coded as usual, so that other services may stand beside the discovery stream.
func Codec() encoding.CodecV2 { return codec{} }

// ServerOptions are what a server must grant the clients of this package: their keepalive and the size of their messages.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *DeltaDiscoveryRequest:
		b, err := m.Encode()
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	case *DeltaDiscoveryResponse:
		return mem.BufferSlice{mem.SliceBuffer(m.Encode())}, nil
	default:
		return encoding.GetCodecV2("proto").Marshal(v)
	}
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *received:
		data.Ref()
		m.size, m.free = data.Len(), data.Free
		if err := m.decode(data); err != nil {
			m.free()
			return err
		}
		return nil
	case *DeltaDiscoveryRequest:
		r, err := DecodeRequest(data.Materialize())
		if err != nil {
			return err
		}
		*m = *r
		return nil
	case *DeltaDiscoveryResponse:
		r, err := DecodeResponse(data.Materialize())
		if err != nil {
			return err
		}
		*m = *r
		return nil
	}
	c := encoding.GetCodecV2("proto")
	if c == nil {
		return fmt.Errorf("decode %T: no codec", v)
	}
	return c.Unmarshal(data, v)
}
