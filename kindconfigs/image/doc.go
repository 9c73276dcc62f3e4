// SPDX-License-Identifier: Apache-2.0

// Package image makes the one image that every container of a mesh and its lab runs, out of the programs of `make build`:
// without a registry, a daemon or root. The result is an archive as `docker load`, `ctr images import` and
// `kind load image-archive` take it. What each container runs in it, package install and topologies say.
// Sources: OCI image specification; moby's image specification v1.2, for the archive.
package image
