// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"hash/maphash"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

const (
	fanBits = 5
	fan     = 1 << fanBits // children per level; two levels make 1024 leaves
)

// table is a persistent hash table of two levels: a fixed number of leaves, each sorted by hash. A copy of the struct
// is a snapshot of it; writing through an edit copies the nodes and leaves it touches, once per epoch.
// Several values may share a hash; the caller tells them apart.
type table[V any] struct {
	root [fan]*node[V]
	n    int
}

type node[V any] struct {
	leaves [fan][]slot[V]
	epoch  uint64 // the edit that may write to this node
	owned  uint32 // the leaves which that edit has already copied
}

type slot[V any] struct {
	hash uint64
	val  V
}

var seed = maphash.MakeSeed()

func hashString(s string) uint64 { return maphash.String(seed, s) }

// hashKey is hashPair of the two parts of "namespace/name".
func hashKey(key string) uint64 {
	namespace, name, _ := strings.Cut(key, "/")
	return hashPair(namespace, name)
}

func hashPair(a, b string) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	h.WriteString(a)
	h.WriteByte(0)
	h.WriteString(b)
	return h.Sum64()
}

func hashAddr(network string, a netip.Addr) uint64 { return hashPrefix(network, a, -1) }

func hashPrefix(network string, a netip.Addr, bits int) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	b := a.As16()
	h.Write(b[:])
	h.WriteByte(byte(bits))
	h.WriteString(network)
	return h.Sum64()
}

// at is the leaf that holds hash, and the position of its first slot with that hash.
func (t *table[V]) at(hash uint64) ([]slot[V], int) {
	nd := t.root[hash>>(64-fanBits)]
	if nd == nil {
		return nil, 0
	}
	leaf := nd.leaves[hash>>(64-2*fanBits)%fan]
	i, _ := slices.BinarySearchFunc(leaf, hash, func(s slot[V], h uint64) int {
		switch {
		case s.hash < h:
			return -1
		case s.hash > h:
			return 1
		}
		return 0
	})
	return leaf, i
}

// get is the first value with hash that is wanted.
func (t *table[V]) get(hash uint64, wanted func(V) bool) (v V, ok bool) {
	leaf, i := t.at(hash)
	for ; i < len(leaf) && leaf[i].hash == hash; i++ {
		if wanted(leaf[i].val) {
			return leaf[i].val, true
		}
	}
	return v, false
}

// writable is the leaf for hash, private to epoch.
func (t *table[V]) writable(hash, epoch uint64) *[]slot[V] {
	r := &t.root[hash>>(64-fanBits)]
	switch {
	case *r == nil:
		*r = &node[V]{epoch: epoch}
	case (*r).epoch != epoch:
		c := **r
		c.epoch, c.owned = epoch, 0
		*r = &c
	}
	l := hash >> (64 - 2*fanBits) % fan
	if (*r).owned&(1<<l) == 0 {
		old := (*r).leaves[l]
		(*r).leaves[l] = append(make([]slot[V], 0, len(old)+1), old...)
		(*r).owned |= 1 << l
	}
	return &(*r).leaves[l]
}

// insert adds v before all others with the same hash.
func (t *table[V]) insert(epoch, hash uint64, v V) {
	leaf := t.writable(hash, epoch)
	_, i := t.at(hash)
	*leaf = slices.Insert(*leaf, i, slot[V]{hash, v})
	t.n++
}

// put replaces the value with hash that is wanted, or adds v.
func (t *table[V]) put(epoch, hash uint64, v V, wanted func(V) bool) (old V, replaced bool) {
	leaf, i := t.at(hash)
	for ; i < len(leaf) && leaf[i].hash == hash; i++ {
		if wanted(leaf[i].val) {
			w := *t.writable(hash, epoch)
			old, w[i].val = w[i].val, v
			return old, true
		}
	}
	t.insert(epoch, hash, v)
	return old, false
}

// remove deletes the first value with hash that is wanted.
func (t *table[V]) remove(epoch, hash uint64, wanted func(V) bool) (old V, ok bool) {
	leaf, i := t.at(hash)
	for ; i < len(leaf) && leaf[i].hash == hash; i++ {
		if wanted(leaf[i].val) {
			w := t.writable(hash, epoch)
			old = (*w)[i].val
			*w = slices.Delete(*w, i, i+1)
			t.n--
			return old, true
		}
	}
	return old, false
}

// all yields every value, in no useful order.
func (t *table[V]) all() iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, nd := range t.root {
			if nd == nil {
				continue
			}
			for _, leaf := range nd.leaves {
				for i := range leaf {
					if !yield(leaf[i].val) {
						return
					}
				}
			}
		}
	}
}

// trim gives back the room that leaves of epoch were given to grow into, where it is much.
func (t *table[V]) trim(epoch uint64) {
	const roomy = 8
	for _, nd := range t.root {
		if nd == nil || nd.epoch != epoch {
			continue
		}
		for i, leaf := range nd.leaves {
			if nd.owned&(1<<i) != 0 && cap(leaf)-len(leaf) > roomy {
				nd.leaves[i] = append(make([]slot[V], 0, len(leaf)), leaf...)
			}
		}
	}
}
