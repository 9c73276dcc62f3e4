// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"n","type":"ambient-cni","objectsDir":"/o","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.5/24"}]}}`))
	f.Add([]byte(`{"cniVersion":"0.3.1","prevResult":{"ips":[{"version":"4","address":"10.0.0.5/24"}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		conf, prev, err := parse(b)
		var cniErr *types.Error
		switch {
		case err != nil && !errors.As(err, &cniErr):
			t.Fatalf("not an error that a runtime reads: %v", err)
		case err == nil && (conf == nil || prev == nil):
			t.Fatal("neither a result nor an error")
		}
	})
}

func FuzzFind(f *testing.F) {
	f.Add([]byte("kind: Pod\nmetadata: {name: web, namespace: shop}\n---\nkind: Namespace\nmetadata: {name: shop}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := find(path, "Pod", "shop", "web")
		if err == nil && o != nil && (o.Kind != "Pod" || o.Metadata.Namespace != "shop" || o.Metadata.Name != "web") {
			t.Fatalf("found %+v", o)
		}
	})
}
