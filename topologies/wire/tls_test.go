// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"strings"
	"testing"
)

func streams(up, down []byte) *Flow {
	f := &Flow{Protocol: "tcp", Src: client, Dst: server, Opened: true}
	f.ways[ToServer].stream, f.ways[ToClient].stream = up, down
	return f
}

func record(kind byte, body string) []byte {
	return append([]byte{kind, 3, 3, byte(len(body) >> 8), byte(len(body))}, body...)
}

// hello is a ClientHello with nothing but a version list.
func hello() string {
	exts := "\x00\x2b\x00\x03\x02\x03\x04"
	body := "\x03\x03" + strings.Repeat("r", randomBytes) + "\x00" + "\x00\x02\x13\x01" + "\x01\x00" + "\x00\x07" + exts
	return "\x01\x00\x00" + string(rune(len(body))) + body
}

func TestTLSRefusesOtherStreams(t *testing.T) {
	for name, f := range map[string]*Flow{
		"HTTP":              streams([]byte("GET / HTTP/1.1\r\n\r\n"), nil),
		"nothing":           streams(nil, nil),
		"only a server":     streams(nil, record(recordApplication, "x")),
		"TLS, then text":    streams(append(record(recordHandshake, hello()), "plain text"...), nil),
		"UDP":               {Protocol: "udp"},
		"an endless record": streams(append([]byte{recordApplication, 3, 3, 0xff, 0xff}, make([]byte, 0xffff)...), nil),
	} {
		if info, err := TLS(f); !errors.Is(err, ErrNotTLS) {
			t.Errorf("%s: %+v, %v; want ErrNotTLS", name, info, err)
		}
	}
}

func TestTLSHelloInPieces(t *testing.T) {
	h := hello()
	up := append(record(recordHandshake, h[:10]), record(recordHandshake, h[10:])...)
	info, err := TLS(streams(append(up, record(recordApplication, "secret")...), nil))
	if err != nil || len(info.OfferedVersions) != 1 || info.OfferedVersions[0] != VersionTLS13 || info.Encrypted[ToServer] != 6 {
		t.Errorf("%+v, %v", info, err)
	}
	info, err = TLS(streams(append(up, record(recordApplication, "cut off")[:8]...), nil))
	if err != nil || !info.Truncated {
		t.Errorf("cut off: %+v, %v", info, err)
	}
	if _, err = TLS(streams(record(recordHandshake, "\x01\x00\x00\x04\x03\x03ab"), nil)); err == nil {
		t.Error("a hello that ends early: no error")
	}
}

func FuzzTLS(f *testing.F) {
	f.Add(record(recordHandshake, hello()), record(recordHandshake, "\x02\x00\x00\x02\x03\x03"))
	f.Fuzz(func(t *testing.T, up, down []byte) {
		info, err := TLS(streams(up, down))
		if err == nil && info.Encrypted[ToServer] > int64(len(up)) {
			t.Errorf("%d encrypted bytes in a stream of %d", info.Encrypted[ToServer], len(up))
		}
	})
}
