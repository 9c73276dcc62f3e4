// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Repository is the image's name without a tag. No registry serves it: the image is loaded into nodes.
const Repository = "ambientlab.dev/mesh"

// Programs are in the image at /usr/local/bin, which is its PATH. There is nothing else to run: no shell.
var Programs = []string{"ztunnel", "control", "cni-agent", "ambient-cni", "workload", "capture", "zdspeer"}

const programDir = "usr/local/bin"

// Image is an image in memory. Make it with Build.
type Image struct {
	// Ref is Repository with a tag of the content: the same programs give the same reference, others another.
	Ref string

	tag   name.Tag
	image v1.Image
}

// Build makes the image out of the programs in the directory bin. It needs all of them, static and for the same kind of
// machine, whatever this one is. Each is a layer, so that a change of one leaves the others where they are.
func Build(ctx context.Context, bin string) (*Image, error) {
	base, err := skeleton()
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	layers := []mutate.Addendum{{Layer: base, History: made("the skeleton of a root file system")}}
	var arch string
	var errs []error
	for _, p := range Programs {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("build image: %w", err)
		}
		l, a, err := program(filepath.Join(bin, p))
		switch {
		case err != nil:
			errs = append(errs, err)
		case arch != "" && a != arch:
			errs = append(errs, fmt.Errorf("%s is for %s, others are for %s (make clean build)", p, a, arch))
		default:
			arch = a
			layers = append(layers, mutate.Addendum{Layer: l, History: made(p)})
		}
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("build image: %w", errors.Join(errs...))
	}
	img, err := assemble(layers, arch)
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	return img, nil
}

// Stamp changes when one of the programs does: their sizes and times, not what is in them.
func Stamp(bin string) (string, error) {
	var all []any
	for _, p := range Programs {
		i, err := os.Stat(filepath.Join(bin, p))
		if err != nil {
			return "", fmt.Errorf("look at the image's programs: %w", err)
		}
		all = append(all, p, i.Size(), i.ModTime().UnixNano())
	}
	return fmt.Sprint(all...), nil
}

func made(what string) v1.History { return v1.History{CreatedBy: "ambientlab", Comment: what} }

// assemble is the image of layers. Nothing in it tells when or where it was made.
func assemble(layers []mutate.Addendum, arch string) (*Image, error) {
	img, err := mutate.Append(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config = v1.Config{Env: []string{"PATH=/" + programDir, "HOME=/root"}, WorkingDir: "/"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	id, err := img.ConfigName() // the digest of the configuration, which names those of all layers
	if err != nil {
		return nil, err
	}
	tag, err := name.NewTag(Repository+":"+id.Hex[:12], name.StrictValidation)
	if err != nil {
		return nil, err
	}
	return &Image{Ref: tag.String(), tag: tag, image: img}, nil
}

// WriteTo writes the archive.
func (i *Image) WriteTo(w io.Writer) (int64, error) {
	c := &counter{w: w}
	if err := tarball.Write(i.tag, i.image, c); err != nil {
		return c.n, fmt.Errorf("write image %s: %w", i.Ref, err)
	}
	return c.n, nil
}

// Save writes the archive to a file, as a whole or not at all.
func (i *Image) Save(file string) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("save image: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // it is not there once it has its name
	_, err = i.WriteTo(f)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("save image: %w", err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("save image: %w", err)
	}
	return nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
