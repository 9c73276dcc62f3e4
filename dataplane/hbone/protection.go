// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// TLS record types, RFC 8446 §5.1.
const (
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23
)

const (
	recordHeaderLen = 5
	recordOverhead  = recordHeaderLen + 1 + 16 // header, type, tag
	recordCipherMax = recordPayload + 256      // RFC 8446 §5.2
)

// rekeyAfter is how many records a key seals: a little under 2^24.5, which RFC 8446 §5.5 allows AES-GCM.
const rekeyAfter = 1 << 24

// suites are what TLS 1.3 may have agreed on.
var suites = map[uint16]suite{
	tls.TLS_AES_128_GCM_SHA256:       {sha256.New, 16, gcm},
	tls.TLS_AES_256_GCM_SHA384:       {sha512.New384, 32, gcm},
	tls.TLS_CHACHA20_POLY1305_SHA256: {sha256.New, chacha20poly1305.KeySize, chacha20poly1305.New},
}

type suite struct {
	hash   func() hash.Hash
	keyLen int
	aead   func(key []byte) (cipher.AEAD, error)
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// protection seals or opens the records of one direction after the handshake (RFC 8446 §5.2 to §5.5, §7.2, §7.3).
type protection struct {
	suite  suite
	secret []byte
	aead   cipher.AEAD
	iv     [12]byte
	nonce  [12]byte
	seq    uint64 // records of this key so far
}

func newProtection(id uint16, secret []byte) (*protection, error) {
	s, known := suites[id]
	if !known || len(secret) != s.hash().Size() {
		return nil, fmt.Errorf("cipher suite %s with a secret of %d bytes", tls.CipherSuiteName(id), len(secret))
	}
	p := &protection{suite: s}
	return p, p.use(secret)
}

// use makes secret the one that keys come from.
func (p *protection) use(secret []byte) error {
	key, err := p.expand(secret, "key", p.suite.keyLen)
	if err != nil {
		return err
	}
	iv, err := p.expand(secret, "iv", len(p.iv))
	if err != nil {
		return err
	}
	aead, err := p.suite.aead(key)
	if err != nil {
		return err
	}
	p.secret, p.aead, p.seq = secret, aead, 0
	copy(p.iv[:], iv)
	return nil
}

// update goes on to the next secret.
func (p *protection) update() error {
	next, err := p.expand(p.secret, "traffic upd", p.suite.hash().Size())
	if err != nil {
		return err
	}
	return p.use(next)
}

// expand is HKDF-Expand-Label without context (RFC 8446 §7.1).
func (p *protection) expand(secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(append(append(info, byte(len(label))), label...), 0)
	b, err := hkdf.Expand(p.suite.hash, secret, string(info), n)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return b, nil
}

// next returns the nonce of the next record, valid until the next call.
func (p *protection) next() []byte {
	p.nonce = p.iv
	binary.BigEndian.PutUint64(p.nonce[4:], binary.BigEndian.Uint64(p.nonce[4:])^p.seq)
	p.seq++
	return p.nonce[:]
}

// sealedLen is what n bytes come to in records.
func sealedLen(n int) int { return n + max(1, (n+recordPayload-1)/recordPayload)*recordOverhead }

// seal appends b to dst in records of one kind, with no copy between: the cipher reads b and writes dst. The byte behind b
// and those at the ends of records hold the kind while a record is sealed, and are put back.
func (p *protection) seal(dst []byte, kind byte, b []byte) []byte {
	if cap(b) == len(b) {
		b = slices.Grow(b, 1)
	}
	for {
		n := min(len(b), recordPayload)
		inner := b[:n+1]
		saved := inner[n]
		inner[n] = kind
		at, size := len(dst), n+recordOverhead-recordHeaderLen
		dst = append(dst, recordData, 3, 3, byte(size>>8), byte(size))
		dst = p.aead.Seal(dst, p.next(), inner, dst[at:at+recordHeaderLen])
		inner[n] = saved
		if b = b[n:]; len(b) == 0 {
			return dst
		}
	}
}

// recordError is a record that breaks the protocol, with the alert that tells the peer so.
type recordError struct {
	alert byte
	why   string
}

func (e *recordError) Error() string { return "tls: " + e.why }

// Alerts, RFC 8446 §6.
const (
	alertCloseNotify       = 0
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22
	alertUserCanceled      = 90
)

// recordLen reads a record's header: how long the record is with it.
func recordLen(h []byte) (int, error) {
	n := int(binary.BigEndian.Uint16(h[3:]))
	switch {
	case h[0] != recordData:
		return 0, &recordError{alertUnexpectedMessage, fmt.Sprintf("record of type %d after the handshake", h[0])}
	case n > recordCipherMax:
		return 0, &recordError{alertRecordOverflow, fmt.Sprintf("record of %d bytes", n)}
	}
	return recordHeaderLen + n, nil
}

// open decrypts a whole record into dst, which has room for recordCipherMax bytes.
func (p *protection) open(dst, record []byte) (kind byte, n int, err error) {
	inner, err := p.aead.Open(dst[:0], p.next(), record[recordHeaderLen:], record[:recordHeaderLen])
	if err != nil {
		return 0, 0, &recordError{alertBadRecordMAC, "record that was not sealed with the peer's key"}
	}
	for n = len(inner) - 1; n >= 0 && inner[n] == 0; n-- { // padding
	}
	switch {
	case n < 0:
		return 0, 0, &recordError{alertUnexpectedMessage, "record without a type"}
	case n > recordPayload:
		return 0, 0, &recordError{alertRecordOverflow, fmt.Sprintf("record of %d bytes of content", n)}
	}
	return inner[n], n, nil
}

// secretLog takes the traffic secrets from what crypto/tls writes for a key log, and passes that on to whoever wants it.
type secretLog struct {
	next           io.Writer
	client, server []byte
}

// Write implements io.Writer for tls.Config.KeyLogWriter: a label, the client's random value and the secret.
func (l *secretLog) Write(line []byte) (int, error) {
	var label string
	var random, secret []byte
	if _, err := fmt.Sscanf(string(line), "%s %x %x", &label, &random, &secret); err != nil {
		return 0, fmt.Errorf("read a traffic secret: %w", err)
	}
	switch label {
	case "CLIENT_TRAFFIC_SECRET_0":
		l.client = secret
	case "SERVER_TRAFFIC_SECRET_0":
		l.server = secret
	}
	if l.next == nil {
		return len(line), nil
	}
	return l.next.Write(line)
}
