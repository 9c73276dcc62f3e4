// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// Files are those of an authority, by name. The first four names are those that Istio gives to plugged-in authorities, and
// to the keys of the Secret istio-ca-secret.
type Files map[string][]byte

const (
	authorityKeyFile    = "ca-key.pem"      // signs
	authorityBundleFile = "root-cert.pem"   // all roots that are trusted
	authorityChainFile  = "cert-chain.pem"  // of an intermediate authority: its certificate, and what leads to a root
	authorityCertFile   = "ca-cert.pem"     // the signer's own certificate; read where there is no bundle
	nextKeyFile         = "ca-key-next.pem" // of a root that was added and does not sign yet
	oldKeyFile          = "ca-key-old.pem"  // of the root that signed before, until that is dropped
	rootKeyFile         = "root-key.pem"    // of the root, while an intermediate signs
)

var authorityFiles = []string{authorityKeyFile, authorityBundleFile, authorityChainFile, authorityCertFile, nextKeyFile, oldKeyFile, rootKeyFile}

// Edit is one change of files: Name gets Data, or takes the place of From, or goes if both are empty.
type Edit struct {
	Name, From string
	Data       []byte
}

// Apply is f with edits made in order.
func (f Files) Apply(edits []Edit) Files {
	out := maps.Clone(f)
	if out == nil {
		out = Files{}
	}
	for _, e := range edits {
		switch {
		case e.From != "":
			out[e.Name] = out[e.From]
			delete(out, e.From)
		case e.Data == nil:
			delete(out, e.Name)
		default:
			out[e.Name] = e.Data
		}
	}
	return out
}

// Issuer is the certificate that signs, as PEM.
func (f Files) Issuer() ([]byte, error) {
	s, err := f.signing()
	if err != nil {
		return nil, err
	}
	return encodeCertificate(s.issuer.Raw), nil
}

// Store keeps an authority's files. A control plane may have several processes; they share one store.
type Store interface {
	// Read gives all files that there are.
	Read(ctx context.Context) (Files, error)
	// Change makes the edits that step wants of the files as they are: at once where the store can, else in order, so that the
	// files make sense after each. Step is asked again if somebody else was faster.
	Change(ctx context.Context, step func(Files) ([]Edit, error)) error
	// Watch calls changed once it follows the files, and after everything that happens to them, until ctx ends.
	Watch(ctx context.Context, log *slog.Logger, changed func())
	// String names the store for a log.
	String() string
}

// Directory is the store that is a directory of this host. It and the keys in it must be closed to everyone but their owner:
// a root key that others can read is worth nothing, so that is an error, not a warning.
type Directory string

var _ Store = Directory("")

func (d Directory) String() string { return string(d) }

// Read implements Store.
func (d Directory) Read(context.Context) (Files, error) { return d.read() }

// Change implements Store.
func (d Directory) Change(_ context.Context, step func(Files) ([]Edit, error)) error {
	return d.change(step)
}

// Watch implements Store.
func (d Directory) Watch(ctx context.Context, log *slog.Logger, changed func()) {
	watchDir(ctx, string(d), log, changed)
}

func (d Directory) read() (Files, error) {
	if err := checkPrivate(string(d)); err != nil {
		return nil, err
	}
	out := Files{}
	for _, name := range authorityFiles {
		path := filepath.Join(string(d), name)
		read := readPrivate
		if name == authorityChainFile || name == authorityCertFile {
			read = os.ReadFile
		}
		switch data, err := read(path); {
		case err == nil:
			out[name] = data
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return out, nil
}

func (d Directory) change(step func(Files) ([]Edit, error)) error {
	files, err := d.read()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	edits, err := step(files)
	if err != nil || len(edits) == 0 {
		return err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	var made []string // undone if what follows fails, up to the rename that is the core of a step
	for _, e := range edits {
		if _, there := files[e.Name]; !there && e.Data != nil {
			made = append(made, e.Name)
		}
		if e.From != "" {
			made = nil
		}
		if err := d.edit(e); err != nil {
			return errors.Join(err, d.remove(made))
		}
	}
	return nil
}

func (d Directory) edit(e Edit) error {
	path := filepath.Join(string(d), e.Name)
	switch {
	case e.From != "":
		return os.Rename(filepath.Join(string(d), e.From), path)
	case e.Data == nil:
		return d.remove([]string{e.Name})
	default:
		return writePrivate(path, e.Data)
	}
}

// remove removes files; that one is not there is no error.
func (d Directory) remove(names []string) error {
	var errs []error
	for _, name := range slices.Backward(names) {
		if err := os.Remove(filepath.Join(string(d), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkPrivate refuses what anybody but the owner may touch.
func checkPrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	want := fs.FileMode(0o600)
	if info.IsDir() {
		want = 0o700
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s has mode %#o, so others can reach the root key: chmod %o it", path, mode, want)
	}
	return nil
}

func readPrivate(path string) ([]byte, error) {
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// writePrivate puts data at path as a whole or not at all, and on disk before it returns: a root that is lost after it
// signed would cut the mesh in two.
func writePrivate(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
