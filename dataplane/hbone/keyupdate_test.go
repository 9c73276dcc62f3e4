// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// secretRecords is the TLS 1.3 record layer of a client by hand, for what crypto/tls cannot do: send KeyUpdate. It
// takes over after crypto/tls's handshake, with the traffic secrets that SSLKEYLOGFILE would get.
type secretRecords struct {
	net.Conn
	in, out    direction
	plain      []byte
	keyUpdates int // received
}

// direction is one direction's traffic secret and what follows from it (RFC 8446 §7.2, §7.3).
type direction struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func expandLabel(secret []byte, label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	label = "tls13 " + label
	info = append(append(append(info, byte(len(label))), label...), 0)
	b, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return b
}

func (d *direction) use(secret []byte) {
	block, err := aes.NewCipher(expandLabel(secret, "key", 16))
	if err != nil {
		panic(err)
	}
	d.secret, d.seq, d.iv = secret, 0, expandLabel(secret, "iv", 12)
	d.aead, _ = cipher.NewGCM(block)
}

func (d *direction) update() { d.use(expandLabel(d.secret, "traffic upd", sha256.Size)) }

func (d *direction) nonce() []byte {
	n := bytes.Clone(d.iv)
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^d.seq)
	d.seq++
	return n
}

func (r *secretRecords) writeRecord(kind byte, b []byte) error {
	inner := append(bytes.Clone(b), kind)
	header := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(inner)+16))
	_, err := r.Conn.Write(r.out.aead.Seal(bytes.Clone(header), r.out.nonce(), inner, header))
	return err
}

func (r *secretRecords) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), recordPayload)
		if err := r.writeRecord(23, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(b), nil
}

// requestKeyUpdate changes our sending key and asks the peer to change its own.
func (r *secretRecords) requestKeyUpdate() error {
	err := r.writeRecord(22, []byte{24, 0, 0, 1, 1})
	r.out.update()
	return err
}

func (r *secretRecords) Read(b []byte) (int, error) {
	for len(r.plain) == 0 {
		header := make([]byte, 5)
		if _, err := io.ReadFull(r.Conn, header); err != nil {
			return 0, err
		}
		record := make([]byte, binary.BigEndian.Uint16(header[3:]))
		if _, err := io.ReadFull(r.Conn, record); err != nil {
			return 0, err
		}
		inner, err := r.in.aead.Open(record[:0], r.in.nonce(), record, header)
		if err != nil {
			return 0, fmt.Errorf("record %d after %d KeyUpdates: %w", r.in.seq, r.keyUpdates, err)
		}
		inner = bytes.TrimRight(inner, "\x00")
		kind, inner := inner[len(inner)-1], inner[:len(inner)-1]
		switch {
		case kind == 22 && bytes.Equal(inner, []byte{24, 0, 0, 1, 0}):
			r.keyUpdates++
			r.in.update()
		case kind == 23:
			r.plain = inner
		default:
			return 0, fmt.Errorf("record of kind %d: %x", kind, inner)
		}
	}
	n := copy(b, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// newSecretRecords does the handshake and takes over.
func newSecretRecords(t testing.TB, c net.Conn) *secretRecords {
	t.Helper()
	cfg := pki().client.Clone()
	var log strings.Builder
	cfg.KeyLogWriter = &log
	tc := tls.Client(c, cfg)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if s := tc.ConnectionState().CipherSuite; s != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("test wants TLS_AES_128_GCM_SHA256, got %s", tls.CipherSuiteName(s))
	}
	r := &secretRecords{Conn: c}
	for line := range strings.Lines(log.String()) {
		f := strings.Fields(line)
		secret, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		switch f[0] {
		case "CLIENT_TRAFFIC_SECRET_0":
			r.out.use(secret)
		case "SERVER_TRAFFIC_SECRET_0":
			r.in.use(secret)
		}
	}
	return r
}

// TestKeyUpdateWhileBlocked: a peer that does not read asks for KeyUpdate again and again, in the middle of its own
// sending, while the server is blocked on sending to it. The read loop must not wait for the socket to answer, and every record must be sealed with the key that its place in the stream demands.
func TestKeyUpdateWhileBlocked(t *testing.T) {
	pause := 300 * time.Millisecond
	if *slow {
		pause = 5 * time.Second
	}
	const size, updates, upload = 32 << 20, 20, 16 << 10
	_, hop := startServer(t, serverConfig())
	uploaded := make(chan int64, 1)
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			io.Copy(onlyWriter{c}, io.LimitReader(&pattern{}, size))
			c.CloseWrite()
		}()
		n, _ := io.Copy(onlyWriter{io.Discard}, onlyReader{c})
		uploaded <- n
		<-sent
	})
	c, err := net.Dial("tcp", hop.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(budget + pause))
	r := newSecretRecords(t, c)
	peer := &rawPeer{}
	initRawPeer(peer, r)
	io.WriteString(r, http2.ClientPreface)
	peer.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	peer.fr.WriteWindowUpdate(0, 1<<31-1-floorWindow)
	peer.connect(1, app.String())
	for range updates {
		<-time.After(pause / updates)
		if err := r.requestKeyUpdate(); err != nil {
			t.Fatalf("KeyUpdate: %v", err)
		}
		if err := peer.fr.WriteData(1, false, make([]byte, upload/updates)); err != nil {
			t.Fatalf("send: %v", err)
		}
	}
	peer.fr.WriteData(1, true, nil)
	if n := <-uploaded; n != upload/updates*updates {
		t.Errorf("application got %d bytes", n)
	}
	want := &pattern{}
	got := 0
	for ended := false; !ended; {
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
		got += len(d.Data())
		ended = d.StreamEnded()
	}
	if got != size || r.keyUpdates == 0 {
		t.Errorf("%d of %d bytes, %d KeyUpdates answered", got, size, r.keyUpdates)
	}
	t.Logf("%d KeyUpdates asked for, %d answered", updates, r.keyUpdates)
}

// TestKeyUpdatesAreBounded: a peer that asks for KeyUpdate all the time and reads nothing is cut, and its answers do not
// pile up: one serves for all that were asked for meanwhile.
func TestKeyUpdatesAreBounded(t *testing.T) {
	cfg := serverConfig()
	cfg.StartWindow = 512 << 10
	cfg.PingInterval, cfg.PingTimeout = time.Hour, time.Hour // which would cut it too
	srv, hop := startServer(t, cfg)
	app := serveApps(t, func(c *net.TCPConn) {
		defer c.Close()
		var g sync.WaitGroup
		g.Go(func() { io.Copy(io.Discard, c) })
		io.Copy(onlyWriter{c}, &pattern{})
		g.Wait()
	})
	c, err := net.Dial("tcp", hop.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * budget))
	r := newSecretRecords(t, c)
	peer := &rawPeer{}
	initRawPeer(peer, r)
	io.WriteString(r, http2.ClientPreface)
	peer.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	peer.fr.WriteWindowUpdate(0, 1<<31-1-floorWindow)
	peer.connect(1, app.String())
	most := int64(0)
	for asked := 0; err == nil && asked < 200_000; asked++ {
		if err = r.requestKeyUpdate(); err == nil {
			err = peer.fr.WriteData(1, false, []byte{0}) // or it is cut for records that carry nothing
		}
		for _, c := range srv.snapshot() {
			most = max(most, c.rec.unflushed.Load())
		}
	}
	if err == nil || most > 2*unflushedMax {
		t.Errorf("%d bytes waited, peer ended with %v", most, err)
	}
	eventually(t, "the connection is gone", func() bool { return len(srv.Conns()) == 0 })
}

// pattern is an endless stream of bytes that tell their place.
type pattern struct{ at uint64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at ^ p.at>>8 ^ p.at>>16)
		p.at++
	}
	return len(b), nil
}
