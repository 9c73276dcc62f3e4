// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// Code is an HTTP/2 error code, as carried by RST_STREAM and GOAWAY.
type Code = http2.ErrCode

// Stage is how far a connection attempt came.
type Stage uint8

// The stages of a connection attempt.
const (
	StageTCP Stage = iota
	StageTLS
	StageH2
)

func (s Stage) String() string {
	return [...]string{"tcp connect", "tls handshake", "http2"}[s]
}

// ConnectError says that no connection to the peer came about. Nothing of the application's was sent.
type ConnectError struct {
	Stage   Stage
	Err     error
	Timeout bool
}

func (e *ConnectError) Error() string { return fmt.Sprintf("%s: %v", e.Stage, e.Err) }
func (e *ConnectError) Unwrap() error { return e.Err }

// StatusError is the peer's answer to a CONNECT that it refused.
type StatusError struct {
	Code   int
	Header []Header
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("peer refused the tunnel: status %d", e.Code)
}

// ResetError says that one stream was reset; its connection lives on.
type ResetError struct {
	Code   Code
	Remote bool // the peer reset it
}

func (e *ResetError) Error() string {
	if e.Remote {
		return fmt.Sprintf("peer reset the stream: %v", e.Code)
	}
	return fmt.Sprintf("stream reset: %v", e.Code)
}

// ConnectionError says that a whole connection failed, and with it every stream it carried.
type ConnectionError struct {
	Code Code
	Err  error
	ours bool // our decision, which the peer is told by GOAWAY
}

func (e *ConnectionError) Error() string { return fmt.Sprintf("connection: %v (%v)", e.Err, e.Code) }
func (e *ConnectionError) Unwrap() error { return e.Err }

// errUnprocessed says that the peer certainly did not act on a stream, so that it may be opened again.
var errUnprocessed = errors.New("not processed by the peer")

// errLost says that the peer's kernel reset a connection before the peer answered a stream: the peer ended, and what has its
// address now knows nothing of the connection.
var errLost = errors.New("connection lost before the peer answered")

// errNotSent says that a connection took no new stream, so that nothing was sent.
var errNotSent = errors.New("connection takes no new streams")

// errNoStreams says that the peer's SETTINGS allow no streams at all.
var errNoStreams = errors.New("peer allows no streams")

// ErrClosed is returned when a Pool or Server takes no more streams.
var ErrClosed = errors.New("hbone: closed")
