// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// RevocationFile is a file of revocation lists that is read again whenever it changes. What cannot be read changes nothing:
// the last good lists stay in force. It is safe for concurrent use; nil is a file without lists.
type RevocationFile struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	now     *Revocations  // guarded by mu
	read    time.Time     // when now was read; guarded by mu
	err     error         // what is wrong with the file since; guarded by mu
	data    []byte        // of the last look; owned by Watch
	changed chan struct{} // closed when now is replaced; guarded by mu
}

// OpenRevocationFile reads path. A file that is not there yet revokes nothing, and is waited for; one that cannot be
// understood is an error, since nobody knows what it should have revoked.
func OpenRevocationFile(path string, log *slog.Logger) (*RevocationFile, error) {
	f := &RevocationFile{path: path, log: log, changed: make(chan struct{})}
	data, err := f.readFile()
	if errors.Is(err, fs.ErrNotExist) {
		log.Warn("file of revocation lists is not there yet, so nobody is revoked", "file", path)
		f.err = err
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read revocation lists: %w", err)
	}
	lists, err := ParseRevocationLists(data)
	if err != nil {
		return nil, fmt.Errorf("read revocation lists %s: %w", path, err)
	}
	f.data, f.read, f.now = data, time.Now(), &Revocations{lists: lists}
	return f, nil
}

func (f *RevocationFile) readFile() ([]byte, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxLists {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", f.path, info.Size(), maxLists)
	}
	return os.ReadFile(f.path)
}

// Load returns the lists that are in force.
func (f *RevocationFile) Load() *Revocations {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// Changed is closed when Load returns something else.
func (f *RevocationFile) Changed() <-chan struct{} {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// RevocationState is what a file of lists is worth at one moment.
type RevocationState struct {
	Path  string
	Read  time.Time // when what is in force was read; zero if nothing is
	Lists []*RevocationList
	Err   error // why the file as it is now is not in force
}

// State describes the file.
func (f *RevocationFile) State() RevocationState {
	if f == nil {
		return RevocationState{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return RevocationState{Path: f.path, Read: f.read, Lists: f.now.Lists(), Err: f.err}
}

// Watch follows the file until ctx ends.
func (f *RevocationFile) Watch(ctx context.Context) {
	watchDir(ctx, filepath.Dir(f.path), f.log, f.look)
}

func (f *RevocationFile) look() {
	data, err := f.readFile()
	if err == nil && f.data != nil && bytes.Equal(data, f.data) {
		f.settle(nil)
		return
	}
	var lists []*RevocationList
	if err == nil {
		lists, err = ParseRevocationLists(data)
	}
	if err != nil {
		if f.settle(err) {
			f.log.Error("revocation lists are bad; the last good ones stay in force", "file", f.path, "error", err, "in_force", len(f.Load().Lists()))
		}
		return
	}
	f.data = data
	f.replace(&Revocations{lists: lists})
	revoked := 0
	for _, l := range lists {
		revoked += l.Len()
		if !l.Next().IsZero() && time.Now().After(l.Next()) {
			f.log.Warn("revocation list is older than its issuer promised; it is heeded all the same", "issuer", l.Issuer(), "next_update", l.Next())
		}
	}
	f.log.Info("revocation lists in force", "file", f.path, "lists", len(lists), "revoked", revoked)
}

// settle notes what is wrong with the file, and reports whether that is news.
func (f *RevocationFile) settle(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	news := err != nil && (f.err == nil || f.err.Error() != err.Error())
	f.err = err
	return news
}

func (f *RevocationFile) replace(r *Revocations) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now, f.read, f.err = r, time.Now(), nil
	close(f.changed)
	f.changed = make(chan struct{})
}
