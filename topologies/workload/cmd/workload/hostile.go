// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/ambientlab/ambientlab/topologies/workload/discovery"
	"github.com/ambientlab/ambientlab/topologies/workload/peer"
)

// tunnel plays one end of an HBONE connection by the order on stdin.
func tunnel(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 || args[0] != "call" && args[0] != "serve" {
		return usageError{errors.New("usage: workload tunnel call|serve, with an order as JSON on stdin")}
	}
	in := bufio.NewReader(stdin)
	o, err := peer.Read(in)
	if err != nil {
		return usageError{err}
	}
	if args[0] == "call" {
		out, err := peer.Call(ctx, o)
		if err != nil {
			return err
		}
		return json.NewEncoder(stdout).Encode(out)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() { // the end of the input is the order to end
		defer close(ended)
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	err = peer.Serve(ctx, o, func() { _, _ = fmt.Fprintln(stdout, "ready") })
	if ctx.Err() != nil {
		<-ended
		return nil
	}
	return err
}

// discover is a control plane by the configuration in the first line of stdin; every further line is a step. It ends with
// the input.
func discover(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	in := bufio.NewScanner(stdin)
	in.Buffer(nil, 1<<20)
	if !in.Scan() {
		return usageError{errors.New("usage: workload discovery, with a configuration as one line of JSON on stdin, then one step a line")}
	}
	var cfg discovery.Config
	if err := json.Unmarshal(in.Bytes(), &cfg); err != nil {
		return usageError{fmt.Errorf("read configuration: %w", err)}
	}
	s, err := discovery.New(cfg)
	if err != nil {
		return usageError{err}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { _, _ = fmt.Fprintln(stdout, `{"step":"listening"}`) }) }()
	for out := json.NewEncoder(stdout); in.Scan(); {
		report, err := s.Step(ctx, in.Text())
		if err == nil {
			err = out.Encode(report)
		}
		if err != nil {
			cancel()
			return errors.Join(err, <-done)
		}
	}
	cancel()
	return errors.Join(in.Err(), <-done)
}
