// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// received is a response whose values still lie in gRPC's buffers. free gives those back.
type received struct {
	DeltaDiscoveryResponse
	types [][]byte // the type of each resource's Any; aliases the buffers
	size  int
	free  func()
}

// DecodeResponse reads a DeltaDiscoveryResponse; fields that are not named here are skipped. The values alias b.
func DecodeResponse(b []byte) (*DeltaDiscoveryResponse, error) {
	r := &received{}
	if err := r.decode(mem.BufferSlice{mem.SliceBuffer(b)}); err != nil {
		return nil, err
	}
	return &r.DeltaDiscoveryResponse, nil
}

// decode walks over the message where it lies: a whole mesh's worth of it need not exist twice. Only a resource that
// straddles two buffers is copied.
func (r *received) decode(data mem.BufferSlice) error {
	s := &scanner{rest: data}
	for !s.done() {
		num, f, err := s.next()
		if err != nil {
			return fmt.Errorf("decode discovery response: %w", err)
		}
		switch num {
		case 2:
			err = r.decodeResource(f.bytes)
		case 4:
			r.TypeURL, err = f.string()
		case 5:
			r.Nonce, err = f.string()
		case 6:
			err = f.appendTo(&r.Removed)
		}
		if err != nil {
			return fmt.Errorf("decode discovery response: field %d: %w", num, err)
		}
	}
	return nil
}

func (r *received) decodeResource(b []byte) error {
	var res Resource
	var typeURL []byte
	err := eachField(b, func(num protowire.Number, v field) (err error) {
		switch num {
		case 1:
			res.Version, err = v.string()
		case 2:
			typeURL, res.Value, err = decodeAny(v.bytes)
		case 3:
			res.Name, err = v.string()
		}
		return err
	})
	r.Resources = append(r.Resources, res)
	r.types = append(r.types, typeURL)
	return err
}

func decodeAny(b []byte) (typeURL, value []byte, err error) {
	value = []byte{} // an empty message is a value; nil is none
	err = eachField(b, func(num protowire.Number, v field) error {
		switch num {
		case 1:
			typeURL = v.bytes
		case 2:
			value = v.bytes
		}
		return nil
	})
	return typeURL, value, err
}

// unnamed stands for the name of a resource that has none.
const unnamed = "(unnamed)"

// split parts what may be handed on from what is of no use to anybody.
func (r *received) split() (good []Resource, bad []Rejection) {
	named := make(map[string]int, len(r.Resources)) // what comes twice says nothing: its last good version stays
	for _, res := range r.Resources {
		named[res.Name]++
	}
	removed := r.Removed[:0]
	for _, name := range r.Removed {
		if named[name] == 0 {
			removed = append(removed, name)
			continue
		}
		named[name] = -1
	}
	r.Removed = removed
	good = r.Resources[:0]
	for i, res := range r.Resources {
		switch n := named[res.Name]; {
		case res.Name == "":
			bad = append(bad, Rejection{unnamed, errors.New("no name")})
		case n > 1:
			named[res.Name] = 0
			bad = append(bad, Rejection{res.Name, fmt.Errorf("%d times in one response", n)})
		case n == 0: // said already
		case n < 0:
			bad = append(bad, Rejection{res.Name, errors.New("both there and removed in one response")})
		case res.Value == nil:
			bad = append(bad, Rejection{res.Name, errors.New("no value")})
		case !bytes.Equal(r.types[i], []byte(r.TypeURL)):
			bad = append(bad, Rejection{res.Name, fmt.Errorf("a %q among %q", r.types[i], r.TypeURL)})
		default:
			good = append(good, res)
		}
	}
	return good, bad
}

// scanner reads the fields of a message that lies in several buffers.
type scanner struct {
	cur  []byte
	rest mem.BufferSlice
}

// done also moves to the next buffer, so that cur is not empty if it says no.
func (s *scanner) done() bool {
	for len(s.cur) == 0 {
		if len(s.rest) == 0 {
			return true
		}
		s.cur, s.rest = s.rest[0].ReadOnlyData(), s.rest[1:]
	}
	return false
}

func (s *scanner) next() (protowire.Number, field, error) {
	tag, err := s.varint()
	if err != nil {
		return 0, field{}, err
	}
	num, typ := protowire.DecodeTag(tag)
	if num < protowire.MinValidNumber {
		return 0, field{}, fmt.Errorf("field number %d", num)
	}
	var f field
	switch typ {
	case protowire.BytesType:
		var n uint64
		if n, err = s.varint(); err == nil {
			f.bytes, err = s.bytes(n)
		}
		return num, f, err
	case protowire.VarintType:
		_, err = s.varint()
	case protowire.Fixed32Type:
		_, err = s.bytes(4)
	case protowire.Fixed64Type:
		_, err = s.bytes(8)
	default:
		err = fmt.Errorf("field %d has wire type %d", num, typ)
	}
	return 0, f, err // no field of a response is a number
}

func (s *scanner) varint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		if s.done() {
			return 0, errTruncated
		}
		c := s.cur[0]
		s.cur = s.cur[1:]
		if shift == 63 && c > 1 {
			break
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, nil
		}
	}
	return 0, errors.New("a number of more than 64 bits")
}

// bytes returns the next n bytes, in place if one buffer has them all.
func (s *scanner) bytes(n uint64) ([]byte, error) {
	if n == 0 {
		return []byte{}, nil
	}
	if s.done() {
		return nil, errTruncated
	}
	if n <= uint64(len(s.cur)) {
		out := s.cur[:n:n]
		s.cur = s.cur[n:]
		return out, nil
	}
	if n > uint64(len(s.cur)+s.rest.Len()) {
		return nil, errTruncated
	}
	out := make([]byte, 0, n)
	for uint64(len(out)) < n && !s.done() {
		k := min(n-uint64(len(out)), uint64(len(s.cur)))
		out = append(out, s.cur[:k]...)
		s.cur = s.cur[k:]
	}
	return out, nil
}
