// SPDX-License-Identifier: Apache-2.0

package labdir

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestOnlyOneHolds(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "one"))
	lock, err := d.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Acquire(); !errors.Is(err, ErrTaken) {
		t.Errorf("second holder: %v, want ErrTaken", err)
	}
	lock.Close()
	again, err := d.Acquire()
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	again.Close()
}

// Looking whether a lab stands neither keeps anybody from bringing it up nor looks like a holder to others who look.
func TestProbesAreNotTakenForHolders(t *testing.T) {
	root := t.TempDir()
	dead := Dir(filepath.Join(root, "dead"))
	lock, err := dead.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	probe, err := os.Open(dead.Lock())
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	if err := syscall.Flock(int(probe.Fd()), syscall.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	if labs, err := List(root); err != nil || len(labs) != 1 || labs[0].Stands {
		t.Errorf("%+v, %v: want one lab, dead, though another looks at it too", labs, err)
	}
	fd, released := int(probe.Fd()), make(chan error, 1)
	time.AfterFunc(20*time.Millisecond, func() { released <- syscall.Flock(fd, syscall.LOCK_UN) })
	lock, err = dead.Acquire()
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatalf("while another looks at it: %v", err)
	}
	lock.Close()
}

func TestCollectRemovesOnlyWhatNobodyHolds(t *testing.T) {
	root := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	standing := Dir(filepath.Join(root, "standing"))
	lock, err := standing.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	write(filepath.Join(root, "dead", "lock"), mark)
	write(filepath.Join(root, "dead", "logs", "web.log"), "")
	write(filepath.Join(root, "notes", "diary.txt"), "")
	write(filepath.Join(root, "other", "lock"), "")
	write(filepath.Join(root, "other", "thesis.txt"), "")
	write(filepath.Join(root, "stillborn", "lock"), "")

	removed, err := Collect(root)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"dead", "stillborn"}, removed); diff != "" {
		t.Error(diff)
	}
	left, _ := filepath.Glob(filepath.Join(root, "*"))
	want := []string{filepath.Join(root, "notes"), filepath.Join(root, "other"), filepath.Join(root, "standing")}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Error(diff)
	}
}

// Somebody's directory of that name is not taken over, nor is anything in it removed.
func TestForeignDirectoriesAreLeftAlone(t *testing.T) {
	d := Dir(t.TempDir())
	if err := os.WriteFile(filepath.Join(string(d), "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Acquire(); !errors.Is(err, ErrForeign) {
		t.Errorf("got %v, want ErrForeign", err)
	}
	entries, err := os.ReadDir(string(d))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: want the one file that was there", entries, err)
	}
}

// Nobody else can have prepared a lab's directory, or change it later.
func TestADirectoryThatOthersMayWriteToIsRefused(t *testing.T) {
	d := Dir(t.TempDir())
	for mode, ok := range map[os.FileMode]bool{0o700: true, 0o755: true, 0o775: false, 0o777: false} {
		if err := os.Chmod(string(d), mode); err != nil {
			t.Fatal(err)
		}
		lock, err := d.Acquire()
		if (err == nil) != ok {
			t.Errorf("%v: %v", mode, err)
		}
		lock.Close() // of nil too
	}
	link := Dir(filepath.Join(t.TempDir(), "link"))
	if err := os.Symlink(string(d), string(link)); err != nil {
		t.Fatal(err)
	}
	if _, err := link.Acquire(); err == nil {
		t.Error("a link to a directory was taken")
	}
	if err := os.Remove(d.Lock()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), d.Lock()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(string(d), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Acquire(); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a lock that leads elsewhere: %v", err)
	}
}
