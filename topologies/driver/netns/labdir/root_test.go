// SPDX-License-Identifier: Apache-2.0

package labdir

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func environ(env map[string]string) func(string) string {
	return func(k string) string { return env[k] }
}

func TestRootFollowsTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"AMBIENTLAB_DIR": "/a", "XDG_STATE_HOME": "/b", "HOME": "/c"}, "/a"},
		{map[string]string{"XDG_STATE_HOME": "/b", "HOME": "/c"}, "/b/ambientlab"},
		{map[string]string{"HOME": "/c"}, "/c/.local/state/ambientlab"},
	} {
		got, err := Root(environ(c.env))
		if err != nil || got != c.want {
			t.Errorf("%v: %q, %v; want %q", c.env, got, err, c.want)
		}
	}
	if _, err := Root(func(string) string { return "" }); err == nil {
		t.Error("no variable at all: want an error")
	}
}

func TestALongPathIsRefused(t *testing.T) {
	_, err := New(environ(map[string]string{"AMBIENTLAB_DIR": "/" + strings.Repeat("x", 100)}), "lab")
	if err == nil || !strings.Contains(err.Error(), "AMBIENTLAB_DIR") {
		t.Errorf("got %v, want an error that names the cure", err)
	}
}

// A home that is too long for sockets is nobody's fault: the lab lies in /tmp then, where gc finds it.
func TestALongHomeIsCircumvented(t *testing.T) {
	_, err := os.Stat(shortRoot())
	if os.IsNotExist(err) {
		t.Cleanup(func() { os.Remove(shortRoot()) }) // fails, rightly, if a lab has come to lie in it
	}
	env := environ(map[string]string{"HOME": "/" + strings.Repeat("x", 80)})
	d, err := New(env, "lab")
	if err != nil || len(d.Socket()) > maxSocketPath {
		t.Fatalf("%s, %v", d, err)
	}
	roots, err := Roots(env)
	if err != nil || !slices.Contains(roots, filepath.Dir(string(d))) {
		t.Errorf("roots %v, %v; want them to have that of %s", roots, err, d)
	}
}

func TestOnlyADirectoryOfOnesOwnIsPrivate(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mode os.FileMode
		path string
		ok   bool
	}{{0o700, dir, true}, {0o755, dir, false}, {0o700, link, false}, {0o700, dir + "/none", false}} {
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		if err := private(c.path); (err == nil) != c.ok {
			t.Errorf("%s %v: %v", c.path, c.mode, err)
		}
	}
}
