// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
)

// Payloads are a known sequence of bytes, so that whoever receives one can check it without having sent it. Its period
// is a prime: no buffer size divides it, and a lost or doubled buffer shows.
const (
	patternPeriod = 65521
	patternChunk  = 64 << 10
)

// pattern is two periods and more, so that a chunk from any offset is one slice of it.
var pattern = sync.OnceValue(func() []byte {
	r := rand.New(rand.NewPCG(2026, 15008))
	p := make([]byte, patternPeriod, patternPeriod+patternChunk)
	for i := range p {
		p[i] = byte(1 + r.IntN(255)) // never zero: that begins a question to the server
	}
	for len(p) < cap(p) {
		p = append(p, p[:min(patternPeriod, cap(p)-len(p))]...)
	}
	return p
})

// patternAt is the pattern's bytes from offset off, at most n and at most one chunk. They must not be written to.
func patternAt(off, n int64) []byte {
	start := off % patternPeriod
	return pattern()[start : start+min(n, patternChunk)]
}

// writePattern writes n bytes of the pattern and returns how many the writer took.
func writePattern(w io.Writer, n int64) (int64, error) {
	var done int64
	for done < n {
		m, err := w.Write(patternAt(done, n-done))
		done += int64(m)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// patternReader reads n bytes of the pattern.
type patternReader struct{ off, n int64 }

func (r *patternReader) Read(b []byte) (int, error) {
	if r.off >= r.n {
		return 0, io.EOF
	}
	m := copy(b, patternAt(r.off, r.n-r.off))
	r.off += int64(m)
	return m, nil
}

// errMismatch says that bytes are not those that were sent.
var errMismatch = errors.New("payload differs")

// checker receives the pattern, from offset 0, and fails at the first byte that differs.
type checker struct {
	n    int64
	hash hash.Hash
}

func newChecker() *checker { return &checker{hash: sha256.New()} }

func (c *checker) Write(b []byte) (int, error) {
	_, _ = c.hash.Write(b) // never fails
	for rest := b; len(rest) > 0; {
		want := patternAt(c.n, int64(len(rest)))
		if !bytes.Equal(rest[:len(want)], want) {
			return 0, fmt.Errorf("%w within %d bytes from offset %d", errMismatch, len(want), c.n)
		}
		c.n += int64(len(want))
		rest = rest[len(want):]
	}
	return len(b), nil
}

func (c *checker) sum() string { return hex.EncodeToString(c.hash.Sum(nil)) }

// counter counts and hashes whatever it receives.
type counter struct {
	n    int64
	hash hash.Hash
}

func newCounter() *counter { return &counter{hash: sha256.New()} }

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return c.hash.Write(b)
}

func (c *counter) sum() string { return hex.EncodeToString(c.hash.Sum(nil)) }

// patternSum is the hash of the pattern's first n bytes.
func patternSum(n int64) string {
	c := newCounter()
	_, _ = writePattern(c, n) // a hash takes everything
	return c.sum()
}
