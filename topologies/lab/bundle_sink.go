// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"
)

// DirSink writes files into a directory, which it makes.
type DirSink string

// Put implements Sink.
func (d DirSink) Put(name string, content []byte) error {
	path := filepath.Join(string(d), filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644) //nolint:gosec // evidence is for everyone to read; keys are not in it
}

// TarSink writes a gzipped tar archive. Close ends it.
type TarSink struct {
	under string
	zip   *gzip.Writer
	tar   *tar.Writer
	now   time.Time
}

// NewTarSink writes to w; all files are in the directory under.
func NewTarSink(w io.Writer, under string) *TarSink {
	zip := gzip.NewWriter(w)
	return &TarSink{under: under, zip: zip, tar: tar.NewWriter(zip), now: time.Now()}
}

// Put implements Sink.
func (t *TarSink) Put(name string, content []byte) error {
	h := &tar.Header{Name: path.Join(t.under, name), Mode: 0o644, Size: int64(len(content)), ModTime: t.now, Typeflag: tar.TypeReg}
	if err := t.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	if _, err := t.tar.Write(content); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

// Close ends the archive; w stays open.
func (t *TarSink) Close() error { return errors.Join(t.tar.Close(), t.zip.Close()) }

// maxRead bounds what is read of one file: the end of it.
const maxRead = 64 << 20

// readFile reads a file, or the end of a very long one.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxRead {
		if _, err := f.Seek(-maxRead, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, maxRead))
}
