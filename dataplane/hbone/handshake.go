// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
)

// handshake is crypto/tls's part: it authenticates the ends and agrees on secrets. From there on the records are ours,
// sealed and opened between an application's bytes and the socket's without a copy, several per system call, and none of
// crypto/tls's buffers and locks is left. The caller closes t after an error.
func handshake(ctx context.Context, t *net.TCPConn, cfg *tls.Config, client bool) (rec *recordConn, state tls.ConnectionState, err error) {
	if rec, err = newRecordConn(t); err != nil {
		return nil, state, err
	}
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.SessionTicketsDisabled = true // they would be the first records of a server
	secrets := &secretLog{next: cfg.KeyLogWriter}
	cfg.KeyLogWriter = secrets
	wrap := tls.Server
	if client {
		wrap = tls.Client
	}
	tc := wrap(&recordReader{Conn: t}, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, state, err
	}
	state = tc.ConnectionState()
	if p := state.NegotiatedProtocol; p != "h2" {
		return nil, state, fmt.Errorf("negotiate h2: peer speaks %q", p)
	}
	own, peers := secrets.server, secrets.client
	if client {
		own, peers = peers, own
	}
	if rec.sealer, err = newProtection(state.CipherSuite, own); err != nil {
		return nil, state, err
	}
	if rec.opener, err = newProtection(state.CipherSuite, peers); err != nil {
		return nil, state, err
	}
	return rec, state, nil
}

// recordReader is a connection that ends each Read at a record's end, so that crypto/tls takes none beyond the
// handshake's.
type recordReader struct {
	net.Conn
	header  [recordHeaderLen]byte
	headerN int
	left    int // payload bytes of the current record still to come
}

// Read implements net.Conn for crypto/tls.
func (r *recordReader) Read(p []byte) (int, error) {
	want := r.left
	if want == 0 {
		want = recordHeaderLen - r.headerN
	}
	n, err := r.Conn.Read(p[:min(len(p), want)])
	if n <= 0 {
		return n, err
	}
	if r.left > 0 {
		r.left -= n
		return n, err
	}
	r.headerN += copy(r.header[r.headerN:], p[:n])
	if r.headerN == recordHeaderLen {
		r.headerN, r.left = 0, int(binary.BigEndian.Uint16(r.header[3:]))
	}
	return n, err
}
