// SPDX-License-Identifier: Apache-2.0

// Package nodeimage is the recipe of a kind node image for hosts that reach no container registry: Kubernetes, etcd and
// CoreDNS from Go modules, everything else from Debian packages. build.sh follows it (`make node-image`); the commands below
// are what it puts into the image. Where kindest/node can be pulled, that is used instead.
package nodeimage
