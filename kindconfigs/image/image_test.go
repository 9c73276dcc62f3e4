// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// executable is as much of a program as a loader looks at.
func executable(machine elf.Machine, interpreter bool, body string) []byte {
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phentsize: 56, Phoff: 64, Phnum: 1}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	segment := elf.Prog64{Type: uint32(elf.PT_LOAD)}
	if interpreter {
		segment.Type = uint32(elf.PT_INTERP)
	}
	var b bytes.Buffer
	for _, part := range []any{h, segment, []byte(body)} {
		_ = binary.Write(&b, binary.LittleEndian, part) // a buffer takes everything
	}
	return b.Bytes()
}

// programs is a directory with all programs, but for those of change; nil leaves one out.
func programs(t *testing.T, change map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range Programs {
		data, changed := change[p]
		if !changed {
			data = executable(elf.EM_X86_64, false, p)
		}
		if changed && data == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, p), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func build(t *testing.T, dir string) (img *Image, archive []byte) {
	t.Helper()
	img, err := Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if n, err := img.WriteTo(&b); err != nil || n != int64(b.Len()) {
		t.Fatalf("%d bytes of %d, %v", n, b.Len(), err)
	}
	return img, b.Bytes()
}

func TestSameProgramsSameImage(t *testing.T) {
	first, a := build(t, programs(t, nil))
	dir := programs(t, nil)
	for _, p := range Programs {
		if err := os.Chtimes(filepath.Join(dir, p), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	second, b := build(t, dir)
	if first.Ref != second.Ref || !bytes.Equal(a, b) {
		t.Errorf("%s and %s, %d and %d bytes: not the same", first.Ref, second.Ref, len(a), len(b))
	}
}

func TestOneProgramIsOneLayer(t *testing.T) {
	old, _ := build(t, programs(t, nil))
	changed, _ := build(t, programs(t, map[string][]byte{"workload": executable(elf.EM_X86_64, false, "another")}))
	if old.Ref == changed.Ref {
		t.Errorf("%s for different programs", old.Ref)
	}
	before, after := layers(t, old), layers(t, changed)
	if len(before) != len(Programs)+1 || len(before) != len(after) {
		t.Fatalf("%d and %d layers, want one for each of %d programs and one for the rest", len(before), len(after), len(Programs))
	}
	differ := 0
	for i := range before {
		if before[i] != after[i] {
			differ++
		}
	}
	if differ != 1 {
		t.Errorf("%d layers differ, want 1", differ)
	}
}

func layers(t *testing.T, img *Image) (out []v1.Hash) {
	t.Helper()
	ls, err := img.image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		h, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h)
	}
	return out
}

func TestContents(t *testing.T) {
	img, archive := build(t, programs(t, nil))
	var manifest []struct{ RepoTags []string }
	if err := json.Unmarshal(entry(t, archive, "manifest.json"), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || len(manifest[0].RepoTags) != 1 || manifest[0].RepoTags[0] != img.Ref || !strings.HasPrefix(img.Ref, Repository+":") {
		t.Errorf("archive of %+v, want %s", manifest, img.Ref)
	}
	config, err := img.image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "amd64" || config.Config.Env[0] != "PATH=/usr/local/bin" || config.Config.Entrypoint != nil || config.Config.Cmd != nil {
		t.Errorf("config %+v for %s/%s", config.Config, config.OS, config.Architecture)
	}
	modes := map[string]fs.FileMode{}
	r := mutate.Extract(img.image)
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		modes[strings.TrimSuffix(h.Name, "/")] = h.FileInfo().Mode()
	}
	want := map[string]fs.FileMode{"tmp": fs.ModeDir | fs.ModeSticky | 0o777, "etc/passwd": 0o644, "usr/local/bin/workload": 0o755, "usr/local/bin/ztunnel": 0o755}
	for name, mode := range want {
		if modes[name] != mode {
			t.Errorf("%s: mode %v, want %v", name, modes[name], mode)
		}
	}
}

// entry is a file of an archive.
func entry(t *testing.T, archive []byte, name string) []byte {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h.Name == name {
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
}

func TestBadPrograms(t *testing.T) {
	for name, c := range map[string]struct {
		change map[string][]byte
		want   []string
	}{
		"missing":      {map[string][]byte{"ztunnel": nil, "capture": nil}, []string{"ztunnel", "capture", "make build makes it"}},
		"a script":     {map[string][]byte{"control": []byte("#!/bin/sh\n")}, []string{"control: is no program for Linux"}},
		"dynamic":      {map[string][]byte{"control": executable(elf.EM_X86_64, true, "")}, []string{"control: is not static", "CGO_ENABLED=0"}},
		"another kind": {map[string][]byte{"capture": executable(elf.EM_AARCH64, false, "")}, []string{"is for arm64, others are for amd64"}},
		"unknown kind": {map[string][]byte{"capture": executable(elf.EM_S390, false, "")}, []string{"EM_S390"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Build(t.Context(), programs(t, c.change))
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v: want %q in it", err, want)
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Build(ctx, programs(t, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("a build that nobody waits for: %v", err)
	}
}

func TestSave(t *testing.T) {
	img, archive := build(t, programs(t, nil))
	dir := t.TempDir()
	if err := img.Save(filepath.Join(dir, "mesh.tar")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "mesh.tar")); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(archive))
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := img.Save(filepath.Join(dir, "taken")); err == nil {
		t.Error("a directory was replaced")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v, %v: something was left behind", left, err)
	}
}

func TestStampTellsOfChangedPrograms(t *testing.T) {
	dir := programs(t, nil)
	stamp := func() string {
		t.Helper()
		s, err := Stamp(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := stamp()
	if again := stamp(); again != first {
		t.Errorf("%s and %s for the same", first, again)
	}
	changed := filepath.Join(dir, Programs[0])
	if err := os.Chtimes(changed, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if stamp() == first {
		t.Error("a program that was built again makes no difference")
	}
	if err := os.Remove(changed); err != nil {
		t.Fatal(err)
	}
	if _, err := Stamp(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a program: %v", err)
	}
}
