// SPDX-License-Identifier: Apache-2.0

package channel

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

type note struct {
	Text string
	N    int
}

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestMessagesKeepOrderAndBounds(t *testing.T) {
	a, b := pair(t)
	sent := []note{{"first", 1}, {strings.Repeat("long ", 300_000), 2}, {"", 3}}
	done := make(chan error, 1)
	go func() {
		for _, n := range sent {
			if err := a.Send(n); err != nil {
				done <- err
				return
			}
		}
		a.Close()
		done <- nil
	}()
	for _, want := range sent {
		var got note
		if _, err := b.Receive(&got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Fatalf("got message %d of %d bytes, want %d of %d", got.N, len(got.Text), want.N, len(want.Text))
		}
	}
	if _, err := b.Receive(&note{}); !errors.Is(err, io.EOF) {
		t.Errorf("after close: %v, want EOF", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDescriptorsTravelWithTheirMessage(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Send(note{Text: "plain"}); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(note{Text: "with a pipe"}, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var n note
	if files, err := b.Receive(&n); err != nil || len(files) != 0 {
		t.Fatalf("first message: %d files, %v; want none", len(files), err)
	}
	files, err := b.Receive(&n)
	if err != nil || len(files) != 1 {
		t.Fatalf("second message: %d files, %v; want one", len(files), err)
	}
	if _, err := files[0].WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	CloseAll(files)
	if got, err := io.ReadAll(r); err != nil || string(got) != "hello" {
		t.Errorf("through the pipe: %q, %v", got, err)
	}
}

func TestGarbageIsAnError(t *testing.T) {
	a, b := pair(t)
	if _, err := a.unix.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(&note{}); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a length of 4 GiB: %v, want an error", err)
	}
}
