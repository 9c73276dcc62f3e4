// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// pollEvery is how often logs are read again while a record is awaited.
const pollEvery = 20 * time.Millisecond

// maxLine is more than any access-log line has.
const maxLine = 1 << 20

// proxyEntry is a record and the node whose ztunnel wrote it.
type proxyEntry struct {
	telemetry.Entry
	node string
}

func (e *proxyEntry) hop(r Role) Hop {
	rec := &e.Record
	return Hop{
		Role: r, Name: DaemonZtunnel, Node: e.node, Start: rec.Start, Duration: rec.Duration, Service: rec.Service,
		TraceID: rec.TraceID, BytesSent: rec.BytesSent, BytesRecv: rec.BytesRecv, Flags: rec.Flags, Policy: rec.Policy, Error: e.Error,
	}
}

// leg is what the proxy opened to the next hop.
func (e *proxyEntry) leg() Leg {
	rec := &e.Record
	l := Leg{Protocol: ProtoTCP, Src: rec.Upstream, Dst: rec.Dst.Addr}
	if rec.Direction == telemetry.Inbound && rec.HBONEAddr.IsValid() {
		l.Dst = rec.HBONEAddr // the tunnel ended here; this is what was asked for
	}
	if rec.Direction == telemetry.Outbound && tunnelled(e) {
		l.Protocol = ProtoHBONE
		l.SrcIdentity, l.DstIdentity = rec.Src.Identity.String(), rec.Dst.Identity.String()
		if rec.HBONEAddr.IsValid() {
			l.Authority = rec.HBONEAddr.String()
		}
	}
	return l
}

// proxyLogs reads the access logs of all ztunnels.
type proxyLogs struct {
	lab   *Lab
	nodes []string
	since time.Time
}

// AccessLog reads what the ztunnel of a node has logged about connections since a time: those that ended or failed, and
// with level debug those that opened. Lines of other kinds are left out.
func (l *Lab) AccessLog(ctx context.Context, node string, since time.Time) ([]telemetry.Entry, error) {
	r, err := l.Daemon(node, DaemonZtunnel).Logs(ctx, since)
	if err != nil {
		return nil, fmt.Errorf("read log of ztunnel on %s: %w", node, err)
	}
	defer func() { _ = r.Close() }()
	entries, err := readAccessLog(r, since)
	if err != nil {
		return entries, fmt.Errorf("read log of ztunnel on %s: %w", node, err)
	}
	return entries, nil
}

func readAccessLog(r io.Reader, since time.Time) ([]telemetry.Entry, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	second := since.UTC().AppendFormat(nil, "2006-01-02T15:04:05")
	var out []telemetry.Entry
	for sc.Scan() {
		line := sc.Bytes()
		if !bytes.Contains(line, []byte(`"access"`)) || older(line, second) {
			continue // most lines: not worth a decoder
		}
		e, err := telemetry.ParseRecord(line)
		if errors.Is(err, telemetry.ErrNotAccess) {
			continue
		}
		if err != nil {
			return out, err
		}
		if !e.Record.Time.Before(since) {
			out = append(out, e)
		}
	}
	return out, sc.Err()
}

// older reports whether a line is surely from before a second. Lines that do not begin with their time are not.
func older(line, second []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte(`{"time":"`))
	return ok && len(rest) > len(second) && bytes.Compare(rest[:len(second)], second) < 0
}

// find waits for a record of a connection that ended or failed. nil means that none came in time.
func (p *proxyLogs) find(ctx context.Context, match func(*proxyEntry) bool) (*proxyEntry, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		e, err := p.look(ctx, match)
		if e != nil || (err != nil && ctx.Err() == nil) {
			return e, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, nil
		}
	}
}

func (p *proxyLogs) look(ctx context.Context, match func(*proxyEntry) bool) (*proxyEntry, error) {
	for _, node := range p.nodes {
		entries, err := p.lab.AccessLog(ctx, node, p.since)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if pe := (&proxyEntry{e, node}); e.Message != telemetry.MessageOpened && match(pe) {
				return pe, nil
			}
		}
	}
	return nil, nil
}
