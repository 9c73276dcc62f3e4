// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestRecordExample opens what RFC 8448 §3 prints of a client's first record after the handshake, and seals the same.
func TestRecordExample(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	secret := unhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
	record := unhex(`17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19 a8
		a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4`)
	want := make([]byte, 50)
	for i := range want {
		want[i] = byte(i)
	}
	o, err := newProtection(tls.TLS_AES_128_GCM_SHA256, secret)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, recordCipherMax)
	kind, n, err := o.open(got, bytes.Clone(record))
	if err != nil || kind != recordData || !bytes.Equal(got[:n], want) {
		t.Errorf("opened %d, %x, %v", kind, got[:n], err)
	}
	s, _ := newProtection(tls.TLS_AES_128_GCM_SHA256, secret)
	if sealed := s.seal(nil, recordData, want); !bytes.Equal(sealed, record) {
		t.Errorf("sealed %x", sealed)
	}
}

// pairOf returns the two ends of one direction.
func pairOf(t testing.TB, id uint16) (seal, open *protection) {
	t.Helper()
	for _, p := range []**protection{&seal, &open} {
		var err error
		if *p, err = newProtection(id, bytes.Repeat([]byte{7}, suites[id].hash().Size())); err != nil {
			t.Fatal(err)
		}
	}
	return seal, open
}

// TestRecordsOfEverySuite carries content of every size class over updates of keys.
func TestRecordsOfEverySuite(t *testing.T) {
	for id := range suites {
		t.Run(tls.CipherSuiteName(id), func(t *testing.T) {
			seal, open := pairOf(t, id)
			src, want := &pattern{}, &pattern{}
			for _, size := range []int{0, 1, 100, recordPayload - 1, recordPayload, recordPayload + 1, 3 * recordPayload} {
				content := make([]byte, size, size+1)
				src.Read(content)
				before := bytes.Clone(content)
				sealed := seal.seal(nil, recordData, content)
				if len(sealed) != sealedLen(size) || !bytes.Equal(content, before) {
					t.Fatalf("%d bytes came to %d, want %d; or the content was changed", size, len(sealed), sealedLen(size))
				}
				var got []byte
				for len(sealed) > 0 {
					n, err := recordLen(sealed)
					if err != nil {
						t.Fatal(err)
					}
					dst := make([]byte, recordCipherMax)
					kind, m, err := open.open(dst, sealed[:n])
					if err != nil || kind != recordData {
						t.Fatalf("kind %d, %v", kind, err)
					}
					got, sealed = append(got, dst[:m]...), sealed[n:]
				}
				expected := make([]byte, size)
				want.Read(expected)
				if !bytes.Equal(got, expected) {
					t.Errorf("%d bytes came as others", size)
				}
				if err := errors.Join(seal.update(), open.update()); err != nil {
					t.Fatal(err)
				}
			}
			sealed := seal.seal(nil, recordData, []byte("x"))
			sealed[len(sealed)-1] ^= 1
			var broken *recordError
			if _, _, err := open.open(make([]byte, recordCipherMax), sealed); !errors.As(err, &broken) || broken.alert != alertBadRecordMAC {
				t.Errorf("a forged record: %v", err)
			}
		})
	}
}

// FuzzOpen: records that arrive in pieces of any size are opened in order, whole, and nothing else is.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("some bytes"), uint16(3), uint8(1), false)
	f.Add(bytes.Repeat([]byte{0}, 70<<10), uint16(1<<14), uint8(2), true)
	f.Fuzz(func(t *testing.T, b []byte, piece uint16, records uint8, large bool) {
		seal, open := pairOf(t, tls.TLS_AES_128_GCM_SHA256)
		var wire []byte
		size := len(b)/(int(records)+1) + 1
		for rest := bytes.Clone(b); len(rest) > 0; {
			n := min(len(rest), size)
			wire, rest = seal.seal(wire, recordData, rest[:n]), rest[n:]
		}
		r := &recordConn{opener: open, large: large}
		var got []byte
		dst := make([]byte, recordCipherMax)
		for len(wire) > 0 {
			r.makeRoom()
			n := copy(r.in[r.inW:], wire[:min(len(wire), int(piece)+1)])
			wire, r.inW = wire[n:], r.inW+n
			for {
				kind, n, err := r.open(dst)
				if errors.Is(err, errWouldBlock) {
					break
				}
				if err != nil || kind != recordData {
					t.Fatalf("kind %d, %v", kind, err)
				}
				got = append(got, dst[:n]...)
			}
			if n%2 == 0 {
				r.park()
			}
		}
		if !bytes.Equal(got, b) || r.buffered() {
			t.Errorf("%d of %d bytes came", len(got), len(b))
		}
	})
}

// TestWhatTLSSaysLater: tickets are dropped, a message may be spread over records, and what has no place is refused.
func TestWhatTLSSaysLater(t *testing.T) {
	update := []byte{typeKeyUpdate, 0, 0, 1, 0}
	ticket := append([]byte{typeNewSessionTicket, 0, 0, 200}, make([]byte, 200)...)
	for _, tt := range []struct {
		name    string
		server  bool
		kind    byte
		records [][]byte
		alert   int // of the error; 0 for none, -1 for io.EOF, -2 for another
	}{
		{name: "ticket", kind: recordHandshake, records: [][]byte{ticket}},
		{name: "ticket in pieces", kind: recordHandshake, records: [][]byte{ticket[:2], ticket[2:50], ticket[50:]}},
		{name: "ticket to a server", server: true, kind: recordHandshake, records: [][]byte{ticket}, alert: alertUnexpectedMessage},
		{name: "ticket before a KeyUpdate", kind: recordHandshake, records: [][]byte{append(bytes.Clone(ticket), update...)}},
		{name: "KeyUpdate before a ticket", kind: recordHandshake, records: [][]byte{append(bytes.Clone(update), ticket...)}, alert: alertUnexpectedMessage},
		{name: "KeyUpdate of another form", kind: recordHandshake, records: [][]byte{{typeKeyUpdate, 0, 0, 1, 2}}, alert: alertUnexpectedMessage},
		{name: "certificate request", kind: recordHandshake, records: [][]byte{{13, 0, 0, 1, 0}}, alert: alertUnexpectedMessage},
		{name: "endless message", kind: recordHandshake, records: [][]byte{{typeNewSessionTicket, 255, 255, 255}}, alert: alertUnexpectedMessage},
		{name: "nothing, often", kind: recordData, records: make([][]byte, uselessMax+1), alert: alertUnexpectedMessage},
		{name: "nothing, not so often", kind: recordData, records: make([][]byte, uselessMax)},
		{name: "unknown type", kind: 24, records: [][]byte{{1}}, alert: alertUnexpectedMessage},
		{name: "close_notify", kind: recordAlert, records: [][]byte{closeNotify}, alert: -1},
		{name: "user_canceled", kind: recordAlert, records: [][]byte{{1, alertUserCanceled}}},
		{name: "internal_error", kind: recordAlert, records: [][]byte{{alertFatal, 80}}, alert: -2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seal, open := pairOf(t, tls.TLS_AES_128_GCM_SHA256)
			c := &conn{client: !tt.server, rec: &recordConn{opener: open}, abuse: newAbuse(time.Now())}
			var err error
			for _, b := range tt.records {
				c.rec.makeRoom()
				c.rec.inW += copy(c.rec.in[c.rec.inW:], seal.seal(nil, tt.kind, b))
				if _, err = c.readRecord(make([]byte, recordCipherMax)); err != nil {
					break
				}
			}
			var broken *recordError
			switch {
			case tt.alert > 0 && (!errors.As(err, &broken) || int(broken.alert) != tt.alert):
				t.Errorf("got %v, want alert %d", err, tt.alert)
			case tt.alert == -1 && !errors.Is(err, io.EOF), tt.alert == -2 && (err == nil || errors.As(err, &broken)), tt.alert == 0 && err != nil:
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestOwnKeyUpdate: a connection goes on to its next key by itself, and crypto/tls at the other end follows.
func TestOwnKeyUpdate(t *testing.T) {
	srv, hop := startServer(t, serverConfig())
	const size = 40 << 10
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(onlyWriter{c}, io.LimitReader(&pattern{}, size))
	})
	peer := rawClient(t, net.TCPAddrFromAddrPort(hop))
	eventually(t, "the connection is there", func() bool { return len(srv.snapshot()) == 1 })
	c := srv.snapshot()[0]
	c.wmu.Lock()
	c.rec.rekeyAfter = 1
	c.wmu.Unlock()
	peer.connect(1, app.String())
	want := &pattern{}
	for got, ended := 0, false; !ended; {
		f, err := peer.next(http2.FrameData, http2.FrameGoAway, http2.FrameRSTStream)
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		d, ok := f.(*http2.DataFrame)
		if !ok {
			t.Fatalf("got %v", f)
		}
		expected := make([]byte, len(d.Data()))
		want.Read(expected)
		if !bytes.Equal(d.Data(), expected) {
			t.Fatalf("wrong bytes after %d", got)
		}
		got, ended = got+len(expected), d.StreamEnded()
		if ended && got != size {
			t.Errorf("%d of %d bytes", got, size)
		}
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.rec.sealer.seq > 10 {
		t.Errorf("%d records of one key", c.rec.sealer.seq)
	}
}
