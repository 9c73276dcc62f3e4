// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// file is an entry of a layer; its owner is root, and it is as old as Unix.
type file struct {
	name string // without a leading slash; a directory's ends with one
	mode int64
	data []byte
}

const accounts = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"

// skeleton is what programs expect of a root file system besides themselves.
func skeleton() (v1.Layer, error) {
	return layer(
		file{name: "etc/", mode: 0o755},
		file{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\nnobody:x:65534:\n")},
		file{name: "etc/nsswitch.conf", mode: 0o644, data: []byte("hosts: files dns\n")},
		file{name: "etc/passwd", mode: 0o644, data: []byte(accounts)},
		file{name: "root/", mode: 0o700},
		file{name: "run/", mode: 0o755},
		file{name: "tmp/", mode: 0o1777},
		file{name: "usr/", mode: 0o755},
		file{name: "usr/local/", mode: 0o755},
		file{name: "usr/local/bin/", mode: 0o755},
		file{name: "var/", mode: 0o755},
		file{name: "var/run/", mode: 0o755},
		file{name: "var/tmp/", mode: 0o1777},
	)
}

// program is a layer with one program, and the architecture that it is for.
func program(from string) (l v1.Layer, arch string, err error) {
	data, err := os.ReadFile(from) //nolint:gosec // the caller chooses it
	if err != nil {
		return nil, "", fmt.Errorf("%w (make build makes it)", err)
	}
	if arch, err = inspect(data); err != nil {
		return nil, "", fmt.Errorf("%s: %w (CGO_ENABLED=0 GOOS=linux make build)", from, err)
	}
	l, err = layer(file{name: path.Join(programDir, filepath.Base(from)), mode: 0o755, data: data})
	return l, arch, err
}

// inspect tells which architecture a program is for, and refuses one that could not start in an image without a C library.
func inspect(data []byte) (string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return "", errors.New("is no program for Linux")
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return "", errors.New("is not static")
	}
	for machine, arch := range map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"} {
		if f.Machine == machine {
			return arch, nil
		}
	}
	return "", fmt.Errorf("is for %v, on which nothing was tried", f.Machine)
}

// layer is files as they are: on one machine, compressing costs more than it saves.
func layer(files ...file) (v1.Layer, error) {
	var b bytes.Buffer
	size := 0
	for _, f := range files {
		size += len(f.data) + 4<<10 // with its header, and the archive's end
	}
	b.Grow(size)
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return static.NewLayer(b.Bytes(), types.DockerUncompressedLayer), nil
}
