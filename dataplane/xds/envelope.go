// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// DeltaMethod is the path of the discovery stream, in both directions a stream of messages of this file.
const DeltaMethod = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

// Node says who asks.
type Node struct {
	// ID is "ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>"; the first part is how a control plane knows what to send.
	ID string
	// Metadata is JSON: nil, bool, float64, string, []any, map[string]any and ints.
	Metadata map[string]any
}

// DeltaDiscoveryRequest subscribes, acknowledges (ResponseNonce set) or refuses (ErrorDetail set too).
type DeltaDiscoveryRequest struct {
	Node                    *Node // nil: as in an earlier request of the stream
	TypeURL                 string
	Subscribe               []string
	Unsubscribe             []string
	InitialResourceVersions map[string]string
	ResponseNonce           string
	ErrorDetail             *Status
}

// DeltaDiscoveryResponse carries what changed in one type.
type DeltaDiscoveryResponse struct {
	TypeURL   string
	Nonce     string
	Resources []Resource
	Removed   []string
}

// Resource is one object at one version. Value is the object itself, without the Any around it.
type Resource struct {
	Name    string
	Version string
	Value   []byte
}

// Status is why a response was refused.
type Status struct {
	Code    int32 // a gRPC code
	Message string
}

var errTruncated = errors.New("message ends early")

// Encode serialises r. Equal requests give equal bytes.
func (r *DeltaDiscoveryRequest) Encode() ([]byte, error) {
	var b []byte
	if r.Node != nil {
		node := appendString(nil, 1, r.Node.ID)
		if len(r.Node.Metadata) > 0 {
			md, err := structpb.NewStruct(r.Node.Metadata)
			if err != nil {
				return nil, fmt.Errorf("encode node metadata: %w", err)
			}
			raw, err := deterministic.Marshal(md)
			if err != nil {
				return nil, fmt.Errorf("encode node metadata: %w", err)
			}
			node = appendBytes(node, 3, raw)
		}
		b = appendBytes(b, 1, node)
	}
	b = appendString(b, 2, r.TypeURL)
	for _, name := range r.Subscribe {
		b = appendBytes(b, 3, []byte(name))
	}
	for _, name := range r.Unsubscribe {
		b = appendBytes(b, 4, []byte(name))
	}
	for _, name := range slices.Sorted(maps.Keys(r.InitialResourceVersions)) {
		b = appendBytes(b, 5, appendString(appendString(nil, 1, name), 2, r.InitialResourceVersions[name]))
	}
	b = appendString(b, 6, r.ResponseNonce)
	if s := r.ErrorDetail; s != nil {
		var status []byte
		if s.Code != 0 {
			status = protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(int64(s.Code)))
		}
		b = appendBytes(b, 7, appendString(status, 2, s.Message))
	}
	return b, nil
}

// Encode serialises r; each resource is wrapped as being of r's type.
func (r *DeltaDiscoveryResponse) Encode() []byte {
	var b []byte
	for _, res := range r.Resources {
		raw := appendString(nil, 1, res.Version)
		raw = appendBytes(raw, 2, appendBytes(appendString(nil, 1, r.TypeURL), 2, res.Value))
		b = appendBytes(b, 2, appendString(raw, 3, res.Name))
	}
	b = appendString(b, 4, r.TypeURL)
	b = appendString(b, 5, r.Nonce)
	for _, name := range r.Removed {
		b = appendBytes(b, 6, []byte(name))
	}
	return b
}

// DecodeRequest reads a DeltaDiscoveryRequest; fields that are not named here are skipped.
func DecodeRequest(b []byte) (*DeltaDiscoveryRequest, error) {
	r := &DeltaDiscoveryRequest{}
	err := eachField(b, func(num protowire.Number, v field) (err error) {
		switch num {
		case 1:
			r.Node, err = decodeNode(v.bytes)
		case 2:
			r.TypeURL, err = v.string()
		case 3:
			err = v.appendTo(&r.Subscribe)
		case 4:
			err = v.appendTo(&r.Unsubscribe)
		case 5:
			err = decodeVersion(v.bytes, r)
		case 6:
			r.ResponseNonce, err = v.string()
		case 7:
			r.ErrorDetail, err = decodeStatus(v.bytes)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("decode discovery request: %w", err)
	}
	return r, nil
}

func decodeNode(b []byte) (*Node, error) {
	n := &Node{}
	return n, eachField(b, func(num protowire.Number, v field) (err error) {
		switch num {
		case 1:
			n.ID, err = v.string()
		case 3:
			var md structpb.Struct
			if err = proto.Unmarshal(v.bytes, &md); err == nil {
				n.Metadata = md.AsMap()
			}
		}
		return err
	})
}

func decodeVersion(b []byte, r *DeltaDiscoveryRequest) error {
	var name, version string
	err := eachField(b, func(num protowire.Number, v field) (err error) {
		switch num {
		case 1:
			name, err = v.string()
		case 2:
			version, err = v.string()
		}
		return err
	})
	if r.InitialResourceVersions == nil {
		r.InitialResourceVersions = map[string]string{}
	}
	r.InitialResourceVersions[name] = version
	return err
}

func decodeStatus(b []byte) (*Status, error) {
	s := &Status{}
	return s, eachField(b, func(num protowire.Number, v field) (err error) {
		switch num {
		case 1:
			s.Code = int32(v.varint)
		case 2:
			s.Message, err = v.string()
		}
		return err
	})
}

// field is the value of one field: bytes for what has a length, varint for the rest.
type field struct {
	bytes  []byte
	varint uint64
}

func (f field) string() (string, error) {
	if !utf8.Valid(f.bytes) {
		return "", errors.New("a string that is not UTF-8")
	}
	return string(f.bytes), nil
}

func (f field) appendTo(list *[]string) error {
	s, err := f.string()
	*list = append(*list, s)
	return err
}

// eachField calls do for every field of the message b that is a varint or has a length. The bytes alias b.
func eachField(b []byte, do func(protowire.Number, field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var f field
		switch typ {
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			f.varint, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType && typ != protowire.VarintType {
			continue
		}
		if err := do(num, f); err != nil {
			return fmt.Errorf("field %d: %w", num, err)
		}
	}
	return nil
}

// appendString leaves the field out if s is empty, as proto3 does.
func appendString(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}
