// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Content types of TLS records (RFC 8446 B.1).
const (
	recordChangeCipher = 20
	recordAlert        = 21
	recordHandshake    = 22
	recordApplication  = 23
)

const (
	recordHeaderBytes = 5
	maxRecordBytes    = 1<<14 + 256
	handshakeHeader   = 4
)

// Handshake message types that travel in the clear.
const (
	clientHello = 1
	serverHello = 2
)

// VersionTLS13 is TLS 1.3 on the wire.
const VersionTLS13 uint16 = 0x0304

// ErrNotTLS says that a stream is not a sequence of TLS records, or has none.
var ErrNotTLS = errors.New("not TLS")

// TLSInfo is what an onlooker learns of a TLS connection.
type TLSInfo struct {
	Records int
	// Truncated says that the recording ends within a record.
	Truncated bool

	// Of the ClientHello. ServerName is "" where none was sent.
	OfferedVersions []uint16
	ALPN            []string
	ServerName      string
	ClientRandom    []byte // names the connection in a key log

	// Of the ServerHello; 0 if none was recorded.
	Version     uint16
	CipherSuite uint16

	// Clear lists handshake messages beside the hellos and alerts that were sent in the clear. TLS 1.3 has none, apart from an alert that ends a
	// handshake before there are keys.
	Clear []string
	// Encrypted is the number of bytes in application records by direction: with TLS 1.3 everything but the hellos.
	Encrypted [2]int64
}

// TLS13 reports whether both sides agreed on TLS 1.3 and nothing but the hellos went in the clear.
func (i TLSInfo) TLS13() bool { return i.Version == VersionTLS13 && len(i.Clear) == 0 }

// TLS dissects a connection. The error matches ErrNotTLS if any byte of it is no TLS record; it is not an error that the handshake
// failed or is of another version.
func TLS(f *Flow) (TLSInfo, error) {
	var info TLSInfo
	if f.Protocol != "tcp" {
		return info, fmt.Errorf("dissect %s: %w", f, ErrNotTLS)
	}
	for _, d := range []Direction{ToServer, ToClient} {
		if missing := f.Missing(d); missing > 0 {
			return info, fmt.Errorf("dissect %s: %d bytes %s were not recorded", f, missing, d)
		}
		if err := info.read(d, f.Payload(d)); err != nil {
			return info, fmt.Errorf("dissect %s: %s: %w", f, d, err)
		}
	}
	if len(info.OfferedVersions) == 0 {
		return info, fmt.Errorf("dissect %s: no ClientHello: %w", f, ErrNotTLS)
	}
	return info, nil
}

// read goes through one direction's records.
func (i *TLSInfo) read(d Direction, stream []byte) error {
	var handshake []byte // of records in a row
	at := 0
	for at < len(stream) {
		head := stream[at:]
		if len(head) < recordHeaderBytes {
			i.Truncated = true
			return nil
		}
		kind, version, length := head[0], binary.BigEndian.Uint16(head[1:]), int(binary.BigEndian.Uint16(head[3:]))
		if kind < recordChangeCipher || kind > recordApplication || version>>8 != 3 || length > maxRecordBytes {
			return fmt.Errorf("offset %d: no TLS record begins with % x: %w", at, head[:recordHeaderBytes], ErrNotTLS)
		}
		if len(head) < recordHeaderBytes+length {
			i.Truncated = true
			return nil
		}
		body := head[recordHeaderBytes : recordHeaderBytes+length]
		i.Records++
		switch kind {
		case recordHandshake:
			rest, err := i.messages(append(handshake, body...))
			if err != nil {
				return fmt.Errorf("offset %d: %w", at, err)
			}
			handshake = rest
		case recordAlert:
			i.Clear = append(i.Clear, fmt.Sprintf("alert %s", d))
		case recordApplication:
			i.Encrypted[d] += int64(length)
		}
		at += recordHeaderBytes + length
	}
	return nil
}

// messages reads complete handshake messages and returns what is left.
func (i *TLSInfo) messages(b []byte) ([]byte, error) {
	for len(b) >= handshakeHeader {
		length := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
		if len(b) < handshakeHeader+length {
			break
		}
		body := b[handshakeHeader : handshakeHeader+length]
		var err error
		switch b[0] {
		case clientHello:
			err = i.clientHello(body)
		case serverHello:
			err = i.serverHello(body)
		default:
			i.Clear = append(i.Clear, fmt.Sprintf("handshake message %d", b[0]))
		}
		if err != nil {
			return nil, err
		}
		b = b[handshakeHeader+length:]
	}
	return b, nil
}
