// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Extensions that are looked at (RFC 8446 4.2, RFC 7301, RFC 6066).
const (
	extServerName        = 0
	extALPN              = 16
	extSupportedVersions = 43
)

const randomBytes = 32

var errShortHello = errors.New("hello message ends early")

// fields reads length-prefixed fields; after the first shortage all further reads give nothing.
type fields struct {
	b     []byte
	short bool
}

func (f *fields) take(n int) []byte {
	if f.short || len(f.b) < n {
		f.short = true
		return nil
	}
	out := f.b[:n]
	f.b = f.b[n:]
	return out
}

// vector reads a field whose length stands before it in size bytes.
func (f *fields) vector(size int) []byte {
	n := 0
	for _, b := range f.take(size) {
		n = n<<8 | int(b)
	}
	return f.take(n)
}

func (f *fields) uint16() uint16 {
	if b := f.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// clientHello reads the first hello; a second one, after a retry request, repeats it.
func (i *TLSInfo) clientHello(b []byte) error {
	f := fields{b: b}
	legacy := f.uint16()
	i.ClientRandom = f.take(randomBytes)
	f.vector(1) // session id
	f.vector(2) // cipher suites
	f.vector(1) // compression
	i.OfferedVersions, i.ALPN, i.ServerName = nil, nil, ""
	err := f.extensions(func(kind uint16, ext fields) {
		switch kind {
		case extSupportedVersions:
			list := fields{b: ext.vector(1)}
			for len(list.b) > 0 && !list.short {
				i.OfferedVersions = append(i.OfferedVersions, list.uint16())
			}
		case extALPN:
			list := fields{b: ext.vector(2)}
			for len(list.b) > 0 && !list.short {
				i.ALPN = append(i.ALPN, string(list.vector(1)))
			}
		case extServerName:
			list := fields{b: ext.vector(2)}
			list.take(1) // the only kind of name is a host's
			i.ServerName = string(list.vector(2))
		}
	})
	if len(i.OfferedVersions) == 0 {
		i.OfferedVersions = []uint16{legacy}
	}
	return err
}

func (i *TLSInfo) serverHello(b []byte) error {
	f := fields{b: b}
	i.Version = f.uint16()
	f.take(randomBytes)
	f.vector(1) // session id
	i.CipherSuite = f.uint16()
	f.take(1) // compression
	return f.extensions(func(kind uint16, ext fields) {
		if kind == extSupportedVersions {
			i.Version = ext.uint16()
		}
	})
}

// extensions visits what is left of a hello; there may be none.
func (f *fields) extensions(visit func(kind uint16, ext fields)) error {
	if f.short {
		return errShortHello
	}
	if len(f.b) == 0 {
		return nil
	}
	all := fields{b: f.vector(2)}
	for len(all.b) > 0 && !all.short {
		kind := all.uint16()
		ext := all.vector(2)
		if !all.short {
			visit(kind, fields{b: ext})
		}
	}
	if f.short || all.short {
		return fmt.Errorf("extensions: %w", errShortHello)
	}
	return nil
}
