// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// The gRPC service is two methods whose messages are raw bytes, framed by hand: a grpc library would make the binary
// that every pod runs twice as large. Source: gRPC over HTTP2 (length-prefixed messages, status in trailers).
const (
	grpcSeen   = "/ambientlab.Echo/Seen"   // one message in, one Seen as JSON out
	grpcStream = "/ambientlab.Echo/Stream" // every message comes back

	// grpcHealth is what kubelet's gRPC probes ask (the gRPC health checking protocol): whatever the question, the answer is
	// healthServing.
	grpcHealth = "/grpc.health.v1.Health/Check"

	grpcOK       = "0"
	grpcInternal = "13"
	grpcNoMethod = "12"
)

// healthServing is a HealthCheckResponse with status SERVING: field 1, value 1.
var healthServing = []byte{0x08, 0x01}

func writeMessage(w io.Writer, msg []byte) error {
	head := make([]byte, 5, 5+len(msg))
	binary.BigEndian.PutUint32(head[1:], uint32(len(msg)))
	_, err := w.Write(append(head, msg...))
	return err
}

// readMessage reads one message; io.EOF means that there are no more.
func readMessage(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != 0 || n > maxMessage {
		return nil, fmt.Errorf("message of %d bytes, compression %d: not supported", n, head[0])
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return msg, nil
}

func (s *Server) grpcSeen(w http.ResponseWriter, r *http.Request) {
	grpcHandle(w, func() error {
		msg, err := readMessage(r.Body)
		if err != nil {
			return err
		}
		seen := s.seenHTTP(r, GRPC)
		if len(msg) > 0 {
			c := newCounter()
			_, _ = c.Write(msg) // never fails
			seen.Bytes, seen.SHA256 = c.n, c.sum()
		}
		data, err := json.Marshal(seen)
		if err != nil {
			return err
		}
		return writeMessage(w, data)
	})
}

func grpcHealthy(w http.ResponseWriter, r *http.Request) {
	grpcHandle(w, func() error {
		if _, err := readMessage(r.Body); err != nil {
			return err
		}
		return writeMessage(w, healthServing)
	})
}

func (s *Server) grpcStream(w http.ResponseWriter, r *http.Request) {
	grpcHandle(w, func() error {
		flush := http.NewResponseController(w)
		if err := flush.Flush(); err != nil { // headers go out before the first message comes in
			return err
		}
		for {
			msg, err := readMessage(r.Body)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := writeMessage(w, msg); err != nil {
				return err
			}
			if err := flush.Flush(); err != nil {
				return err
			}
		}
	})
}

func grpcHandle(w http.ResponseWriter, do func() error) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	status, message := grpcOK, ""
	if err := do(); err != nil {
		status, message = grpcInternal, err.Error()
	}
	w.Header().Set("Grpc-Status", status)
	w.Header().Set("Grpc-Message", message)
}

func grpcUnimplemented(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Grpc-Status", grpcNoMethod)
	w.Header().Set("Grpc-Message", "no method "+r.URL.Path)
}
