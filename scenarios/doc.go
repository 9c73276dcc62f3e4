// SPDX-License-Identifier: Apache-2.0

// Package scenarios runs every scenario against one lab and writes what it saw: `make e2e`. Each capability has a folder
// whose package declares its scenarios; they are imported here and share the lab that this suite brings up.
// A plain `go test` starts no lab and says so.
package scenarios
