// SPDX-License-Identifier: Apache-2.0

// Package labdir knows where a lab of namespaces keeps its files, and tells a lab that stands from files that were left
// behind: its holder keeps a lock, which the kernel releases however the holder ends. Process ids are not trusted.
// It leaves the content of the files to those who write them.
// Source: the project's design, section "Labs: one scenario, three worlds".
package labdir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxSocketPath is the longest path that a Unix socket address holds (unix(7)), without its terminating zero.
const maxSocketPath = 107

// ErrTaken means that a holder keeps the lab.
var ErrTaken = errors.New("the lab stands already")

// ErrForeign means that a directory is there, but not a lab's: nothing in it is touched.
var ErrForeign = errors.New("the directory is not a lab's")

// mark is the content of a lab's lock: a file that happens to have its name has another.
const mark = "ambientlab\n"

// Dir is a lab's directory, an absolute path.
type Dir string

// At is the lab directory at path. It refuses a path that is too long for the lab's socket.
func At(path string) (Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("name lab: %w", err)
	}
	d := Dir(path)
	if n := len(d.Socket()); n > maxSocketPath {
		return "", fmt.Errorf("name lab %s: its socket's path would have %d bytes, the kernel takes %d: set AMBIENTLAB_DIR to a shorter directory", d.Name(), n, maxSocketPath)
	}
	return d, nil
}

// Name is the lab's name.
func (d Dir) Name() string { return filepath.Base(string(d)) }

func (d Dir) join(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}

// Lock is the file that the holder locks.
func (d Dir) Lock() string { return d.join("lock") }

// Socket is where the holder listens.
func (d Dir) Socket() string { return d.join("hold.sock") }

// Objects is the directory of the cluster's objects.
func (d Dir) Objects() string { return d.join("objects") }

// Status is the directory of the status files of one owner.
func (d Dir) Status(owner string) string { return d.join("objects", "status", owner) }

// Logs is the directory of all logs.
func (d Dir) Logs() string { return d.join("logs") }

// Log is the log file of a pod, a daemon or the holder.
func (d Dir) Log(name string) string { return d.join("logs", name+".log") }

// PodLog is the log file of a pod. The mesh's own pods log under their daemon's name.
func (d Dir) PodLog(namespace, name string) string {
	if node, ok := strings.CutPrefix(name, "ztunnel-"); ok && namespace == "istio-system" {
		return d.Log("ztunnel." + node)
	}
	if namespace == "istio-system" && name == "istiod" {
		return d.Log("control")
	}
	return d.Log(namespace + "." + name)
}

// CA is the control plane's private directory.
func (d Dir) CA() string { return d.join("ca") }

// RootCert is a directory of its own, so that pods can see it and nothing else.
func (d Dir) RootCert() string { return d.join("root-cert") }

// JWKS holds the public keys of the token issuer.
func (d Dir) JWKS() string { return d.join("jwks.json") }

// TLSKeys is the directory of the secrets that the mesh's daemons log, a file each, where the topology asks for them.
func (d Dir) TLSKeys() string { return d.join("tls-keys") }

// Node is a path below a node's directory.
func (d Dir) Node(node string, parts ...string) string {
	return d.join(append([]string{"nodes", node}, parts...)...)
}

// Pod is a path below a pod's directory.
func (d Dir) Pod(uid string, parts ...string) string {
	return d.join(append([]string{"pods", uid}, parts...)...)
}

// Topology is the file that describes the lab.
func (d Dir) Topology() string { return d.join("topology.yaml") }

// Acquire makes the directory if need be and locks it for this process: it fails with ErrTaken while another holds it.
// The lock ends with the returned file, which no child inherits. A directory that others may write to is refused.
func (d Dir) Acquire() (*os.File, error) {
	for {
		if err := os.MkdirAll(string(d), 0o700); err != nil {
			return nil, fmt.Errorf("make lab directory: %w", err)
		}
		err := owned(string(d))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed between the two calls
		}
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(d.Lock(), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed between the two calls
		}
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := lock(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", d, err)
		}
		if !d.isLockFile(f) {
			f.Close() // somebody removed the directory after we opened the file: start again
			continue
		}
		if err := d.claim(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("claim %s: %w", d, err)
		}
		return f, nil
	}
}

// claim marks a new lab's lock, which the caller holds.
func (d Dir) claim(lock *os.File) error {
	ours, fresh, err := d.isLab(lock)
	switch {
	case err != nil:
		return err
	case fresh:
		_, err := lock.WriteString(mark)
		return err
	case !ours:
		if info, err := lock.Stat(); err == nil && info.Size() == 0 {
			_ = os.Remove(d.Lock()) // we made it
		}
		return ErrForeign
	}
	return nil
}

// isLab reports whether the directory of this lock is a lab's; fresh, whether there is nothing in it yet.
func (d Dir) isLab(lock *os.File) (ours, fresh bool, err error) {
	content := make([]byte, len(mark)+1)
	n, err := lock.ReadAt(content, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, false, err
	}
	if string(content[:n]) == mark {
		return true, false, nil
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return false, false, err
	}
	fresh = n == 0 && len(entries) == 1
	return fresh, fresh, nil
}

// A probe keeps its shared lock for as long as it takes to see that it got one. Whoever locks for good waits that long, on
// a busy machine too, before it believes that another holds the lab.
const (
	probeTries = 40
	probeWait  = 5 * time.Millisecond
)

// lock locks for a holder: nobody else gets even a shared lock then.
func lock(f *os.File) error {
	for try := 1; ; try++ {
		err := tryLock(f, syscall.LOCK_EX)
		if !errors.Is(err, ErrTaken) || held(f) || try == probeTries {
			return err
		}
		time.Sleep(probeWait)
	}
}

// held probes whether a holder has the lock. A shared lock is enough to see that, and no obstacle to others that probe.
func held(f *os.File) bool {
	if err := tryLock(f, syscall.LOCK_SH); err != nil {
		return errors.Is(err, ErrTaken)
	}
	_ = tryLock(f, syscall.LOCK_UN) // letting go never fails
	return false
}

// tryLock fails with ErrTaken if somebody's lock excludes this one.
func tryLock(f *os.File, how int) error {
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrTaken
	}
	return err
}

func (d Dir) isLockFile(f *os.File) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(d.Lock())
	return err == nil && os.SameFile(ours, there)
}

// Clear removes everything but the lock, which the caller holds.
func (d Dir) Clear() error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return fmt.Errorf("clear lab directory: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != filepath.Base(d.Lock()) {
			errs = append(errs, os.RemoveAll(d.join(e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Remove removes the lab's files, the lock last; the caller holds the lock.
func (d Dir) Remove() error {
	if err := d.Clear(); err != nil {
		return err
	}
	if err := os.Remove(d.Lock()); err != nil {
		return err
	}
	return os.Remove(string(d))
}

// Lab is a lab's directory and whether its holder lives.
type Lab struct {
	Dir    Dir
	Stands bool
}

// List finds the labs below the roots, sorted by name.
func List(roots ...string) ([]Lab, error) {
	var locks []string
	for _, root := range roots {
		found, err := filepath.Glob(filepath.Join(root, "*", "lock"))
		if err != nil {
			return nil, fmt.Errorf("list labs: %w", err)
		}
		locks = append(locks, found...)
	}
	var labs []Lab
	for _, path := range locks {
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue // gone, or another user's
		}
		d := Dir(filepath.Dir(path))
		if ours, _, err := d.isLab(f); err == nil && ours {
			labs = append(labs, Lab{Dir: d, Stands: held(f)})
		}
		f.Close()
	}
	slices.SortFunc(labs, func(a, b Lab) int { return strings.Compare(a.Dir.Name(), b.Dir.Name()) })
	return labs, nil
}

// Collect removes the directories of labs whose holder is gone, and returns their names.
func Collect(roots ...string) ([]string, error) {
	labs, err := List(roots...)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, l := range labs {
		if l.Stands {
			continue
		}
		lock, err := l.Dir.Acquire()
		if errors.Is(err, ErrTaken) {
			continue // somebody took it since
		}
		if err == nil {
			err = l.Dir.Remove()
			lock.Close()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove lab %s: %w", l.Dir.Name(), err))
			continue
		}
		removed = append(removed, l.Dir.Name())
	}
	return removed, errors.Join(errs...)
}
