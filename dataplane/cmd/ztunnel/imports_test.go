// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestLean: every pod of a node shares this process, so what it links is part of the product (design, "Lean daemons").
func TestLean(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("list imports: %v", err)
	}
	for pkg := range strings.Lines(string(out)) {
		for _, heavy := range []string{"k8s.io/", "istio.io/client-go", "github.com/envoyproxy/", "sigs.k8s.io/"} {
			if strings.HasPrefix(pkg, heavy) {
				t.Errorf("ztunnel links %s", strings.TrimSpace(pkg))
			}
		}
	}
}
