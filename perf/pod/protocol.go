// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ambientlab/ambientlab/perf/fortiorun"
)

// Request asks a process for one thing. Exactly one field is set.
type Request struct {
	Usage   bool  `json:",omitempty"`
	Prepare *Load `json:",omitempty"` // a load generator's: connect, and warm up
	Run     bool  `json:",omitempty"` // the prepared load, timed
	Finish  bool  `json:",omitempty"` // close what Prepare opened
}

// Reply answers a Request, in order. The first one comes unasked: the process is ready.
type Reply struct {
	Error  string  `json:",omitempty"`
	Usage  *Usage  `json:",omitempty"`
	Result *Result `json:",omitempty"`
}

// Usage is who a process is, and where.
type Usage struct {
	Process Identity
	Link    Link
}

// Identity is how a process knows itself: in its own PID namespace, which /proc/PID/ns/pid names.
type Identity struct {
	PID       int
	Namespace string
}

// Link is a pod's way out.
type Link struct {
	MTU int
	GSO bool
}

// Kinds of load.
const (
	Bulk     = "bulk"     // bytes to the server, as many as go, on every connection
	Requests = "requests" // Payload bytes there and back, at Rate or as fast as it goes
	Connects = "connects" // connect, one request, close
	Hold     = "hold"     // connections on which nothing happens after one request
)

// Load is what a generator does.
type Load struct {
	Kind        string
	Targets     []string // host:port; connections take turns
	Connections int
	Payload     int
	Rate        float64 // requests per second; 0 is as many as go
	Duration    time.Duration
}

// Result is what came of a load. Of Bulk only Bytes and Seconds are set.
type Result struct {
	Seconds float64
	Bytes   int64
	fortiorun.Result
}

// handler is a process's role.
type handler interface {
	handle(ctx context.Context, r Request) (*Result, error)
}

// idle is the role of a process that only serves.
type idle struct{}

func (idle) handle(context.Context, Request) (*Result, error) {
	return nil, errors.New("this process makes no load")
}

// converse answers requests until in ends or ctx does.
func converse(ctx context.Context, h handler, in io.Reader, out io.Writer) error {
	enc, dec := json.NewEncoder(out), json.NewDecoder(in)
	if err := enc.Encode(Reply{}); err != nil {
		return fmt.Errorf("say that the process is ready: %w", err)
	}
	for ctx.Err() == nil {
		var r Request
		if err := dec.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read a request: %w", err)
		}
		if err := enc.Encode(answer(ctx, h, r)); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	return nil
}

func answer(ctx context.Context, h handler, r Request) Reply {
	if r.Usage {
		u, err := usage()
		if err != nil {
			return Reply{Error: err.Error()}
		}
		return Reply{Usage: &u}
	}
	res, err := h.handle(ctx, r)
	if err != nil {
		return Reply{Error: err.Error()}
	}
	return Reply{Result: res}
}
