// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// received is a response whose values still lie in gRPC's buffers. free gives those back.
type received struct {
	DeltaDiscoveryResponse
	anyType []byte         // the type of the first resource's Any; aliases the buffers
	odd     map[int][]byte // that of those whose is another, by index
	size    int
	free    func()
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
	if n := countResources(data); n > 0 {
		r.Resources = make([]Resource, 0, n)
	}
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
	switch i := len(r.Resources); {
	case i == 0:
		r.anyType = typeURL
	case !bytes.Equal(typeURL, r.anyType):
		if r.odd == nil {
			r.odd = map[int][]byte{}
		}
		r.odd[i] = typeURL
	}
	r.Resources = append(r.Resources, res)
	return err
}

// typeOf is the type of a resource's Any.
func (r *received) typeOf(i int) []byte {
	if t, odd := r.odd[i]; odd {
		return t
	}
	return r.anyType
}

// countResources looks no further than an error, which decode will meet too.
func countResources(data mem.BufferSlice) (n int) {
	s := &scanner{rest: data}
	for !s.done() {
		num, _, err := s.skip()
		if err != nil {
			break
		}
		if num == 2 {
			n++
		}
	}
	return n
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
	named := r.repeated() // what comes twice says nothing: its last good version stays
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
		switch n, again := named[res.Name]; {
		case res.Name == "":
			bad = append(bad, Rejection{unnamed, errors.New("no name")})
		case n > 1:
			named[res.Name] = 0
			bad = append(bad, Rejection{res.Name, fmt.Errorf("%d times in one response", n)})
		case again && n == 0: // said already
		case n < 0:
			bad = append(bad, Rejection{res.Name, errors.New("both there and removed in one response")})
		case res.Value == nil:
			bad = append(bad, Rejection{res.Name, errors.New("no value")})
		case !bytes.Equal(r.typeOf(i), []byte(r.TypeURL)):
			bad = append(bad, Rejection{res.Name, fmt.Errorf("a %q among %q", r.typeOf(i), r.TypeURL)})
		default:
			good = append(good, res)
		}
	}
	return good, bad
}

// repeated counts the resources of each name, but leaves out nearly all names that come once, removed or not: a map of the
// whole mesh would be a large part of what a ztunnel ever needs at once.
func (r *received) repeated() map[string]int {
	seed := maphash.MakeSeed()
	hashes := make([]uint64, 0, len(r.Resources)+len(r.Removed))
	for i := range r.Resources {
		hashes = append(hashes, maphash.String(seed, r.Resources[i].Name))
	}
	for _, name := range r.Removed {
		hashes = append(hashes, maphash.String(seed, name))
	}
	slices.Sort(hashes)
	suspect := map[uint64]bool{}
	for i := 1; i < len(hashes); i++ {
		if hashes[i] == hashes[i-1] {
			suspect[hashes[i]] = true
		}
	}
	named := map[string]int{}
	if len(suspect) == 0 {
		return named
	}
	for i := range r.Resources {
		if name := r.Resources[i].Name; suspect[maphash.String(seed, name)] {
			named[name]++
		}
	}
	return named
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

func (s *scanner) next() (protowire.Number, field, error) { return s.field(s.bytes) }

// skip is next without the bytes of a field that has a length.
func (s *scanner) skip() (protowire.Number, field, error) { return s.field(s.discard) }

func (s *scanner) field(bytes func(uint64) ([]byte, error)) (protowire.Number, field, error) {
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
			f.bytes, err = bytes(n)
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

// discard is bytes without a result.
func (s *scanner) discard(n uint64) ([]byte, error) {
	for n > 0 {
		if s.done() {
			return nil, errTruncated
		}
		k := min(n, uint64(len(s.cur)))
		n -= k
		s.cur = s.cur[k:]
	}
	return nil, nil
}
