// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ambientlab/ambientlab/kindconfigs/image"
)

func (a *app) imageCommand() *cobra.Command {
	return &cobra.Command{
		Use: "image", Short: "Make the image that all containers of a mesh run, out of the programs beside this one",
		Long: "Prints the reference of the image that all containers of a mesh and its lab run, and with -o FILE.tar writes it, for\n" +
			"`docker load`, `kind load image-archive` and `ctr images import`. The same programs make the same image.",
		Example:     "  lab image\n  lab image -o mesh.tar && kind load image-archive mesh.tar",
		Annotations: map[string]string{outputs: "*.tar"}, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.image(c.Context()) },
	}
}

func (a *app) image(ctx context.Context) error {
	img, err := buildImage(ctx)
	if err != nil {
		return err
	}
	switch a.output {
	case "text":
	case "json":
		return json.NewEncoder(a.stdout).Encode(map[string]any{"image": img.Ref, "programs": image.Programs})
	default:
		if err := img.Save(a.output); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(a.stdout, img.Ref)
	return err
}

// buildImage makes the image of the programs in $AMBIENTLAB_BIN, or beside this one.
func buildImage(ctx context.Context) (*image.Image, error) {
	bin := os.Getenv("AMBIENTLAB_BIN")
	if bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		bin = filepath.Dir(exe)
	}
	return image.Build(ctx, bin)
}
