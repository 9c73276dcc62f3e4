// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestAsOrdinaryUser(t *testing.T) { nstest.AsOrdinaryUser(t, "^Test") }

func inodeHere(t *testing.T) uint64 {
	t.Helper()
	n, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	return n.Inode()
}

func TestDoEntersAndReturns(t *testing.T) {
	n := nstest.New(t)
	home := inodeHere(t)
	want := errors.New("from inside")
	got := n.Do(func() error {
		if in := inodeHere(t); in != n.Inode() {
			t.Errorf("inside Do: namespace %d, want %d", in, n.Inode())
		}
		started := make(chan uint64)
		go func() { started <- inodeHere(t) }()
		if in := <-started; in != home {
			t.Errorf("a goroutine started inside Do: namespace %d, want %d", in, home)
		}
		return want
	})
	if !errors.Is(got, want) {
		t.Errorf("Do = %v, want fn's error", got)
	}
	if in := inodeHere(t); in != home {
		t.Errorf("after Do: namespace %d, want %d", in, home)
	}
}

func TestDoNests(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.In(t, a, func() error {
		nstest.In(t, b, func() error {
			if in := inodeHere(t); in != b.Inode() {
				t.Errorf("inner Do: namespace %d, want %d", in, b.Inode())
			}
			return nil
		})
		if in := inodeHere(t); in != a.Inode() {
			t.Errorf("outer Do after the inner: namespace %d, want %d", in, a.Inode())
		}
		return nil
	})
}

func TestDoPassesPanicsOn(t *testing.T) {
	n := nstest.New(t)
	home := inodeHere(t)
	defer func() {
		if r := recover(); r != "boom" {
			t.Errorf("recovered %v, want boom", r)
		}
		if in := inodeHere(t); in != home {
			t.Errorf("after the panic: namespace %d, want %d", in, home)
		}
	}()
	_ = n.Do(func() error { panic("boom") })
}

func TestFromFDRefusesOtherDescriptors(t *testing.T) {
	open := func(path string) int {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	for path, want := range map[string]string{
		"/dev/null":           "is not a namespace",
		"/proc/self/ns/mnt":   "not a network namespace",
		"/proc/self/net/arp":  "is not a namespace",
		"/proc/self/ns/net":   "",
		"/proc/thread-self/.": "is not a namespace",
	} {
		fd := open(path)
		n, err := netns.FromFD(fd)
		if want == "" {
			if err != nil {
				t.Errorf("FromFD(%s): %v", path, err)
			}
			n.Close()
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("FromFD(%s): %v, want an error that says %q", path, err, want)
		}
		if err := unix.Close(fd); err != unix.EBADF {
			t.Errorf("FromFD(%s) left the descriptor open (close: %v)", path, err)
		}
	}
}

func TestClosedNamespaceSaysSo(t *testing.T) {
	n := nstest.New(t)
	d, err := n.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if !d.Same(n) || d.Fd() == n.Fd() {
		t.Errorf("Dup of %v (%d) = %v (%d)", n, n.Fd(), d, d.Fd())
	}
	d.Close()
	if err := d.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := d.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close = %v, want os.ErrClosed", err)
	}
	if err := n.Do(func() error { return nil }); err != nil {
		t.Errorf("the original after its duplicate is closed: %v", err)
	}
}

func TestOpenNamesThePath(t *testing.T) {
	if _, err := netns.Open("/nonexistent/net"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/net") {
		t.Errorf("Open = %v", err)
	}
}
