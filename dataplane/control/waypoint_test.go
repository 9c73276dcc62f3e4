// SPDX-License-Identifier: Apache-2.0

package control

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/source/file"
)

const askForWaypoints = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: gate, istio.io/use-waypoint-namespace: edge}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Service
metadata: {name: by-namespace, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-itself, namespace: shop, labels: {istio.io/use-waypoint: own}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: without, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: plain}
spec: {ports: [{port: 80}]}
`

// A service that asks for a waypoint must not look as if it had one; what is written there is read back, and asks for nothing.
func TestServicesWithoutTheirWaypointsSaySo(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "objects.yaml"), []byte(askForWaypoints), 0o600); err != nil {
		t.Fatal(err)
	}
	o, problems, err := file.Read(dir)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	snapshot := Compile(o, Settings{})
	if len(snapshot.Problems) != 2 || !strings.Contains(snapshot.Problems[0].Error(), "use-waypoint") {
		t.Errorf("problems %v", snapshot.Problems)
	}
	s := NewStatusDir(filepath.Join(dir, "status/control"), slog.New(slog.DiscardHandler))
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	if err := s.write(snapshot.Conditions); err != nil {
		t.Fatal(err)
	}
	if o, problems, err = file.Read(dir); err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	for name, names := range map[string]string{"shop/by-namespace": "edge/gate", "shop/by-itself": "shop/own", "shop/without": "", "shop/alias": "", "plain/cart": ""} {
		c := o.Services[name].Status.Conditions
		switch {
		case names == "" && len(c) == 0:
		case names == "" || len(c) != 1:
			t.Errorf("%s: %v", name, c)
		case c[0].Type != "istio.io/WaypointBound" || c[0].Status != "False" || c[0].Reason != "UnsupportedValue" || !strings.Contains(c[0].Message, names):
			t.Errorf("%s: %v", name, c)
		}
	}
	if again := Compile(o, Settings{}); len(again.Conditions) != 2 || len(again.Services) != len(snapshot.Services) {
		t.Errorf("%d conditions, %d services", len(again.Conditions), len(again.Services))
	}
}
