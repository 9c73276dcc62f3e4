// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var update = flag.Bool("update", false, "rewrite golden files")

// everything is set, and differs from the default.
func everything() Options {
	return Options{
		Image: "registry.example/mesh:v1", ImagePullPolicy: corev1.PullAlways, ClusterID: "east", Network: "net1", TrustDomain: "mesh.example",
		Domain: "east.local", ControlReplicas: 3, NodeSelector: map[string]string{"mesh": "yes"},
		CNIBinDir: "/var/lib/cni/bin", CNIConfDir: "/var/lib/cni/net.d", CRDs: CRDsNone,
		DaemonEnv: map[string][]string{
			DaemonZtunnel: {"LOG_LEVEL=debug", "CLUSTER_ID=other"}, DaemonCNIAgent: {"DRIFT_INTERVAL=1s"}, DaemonControl: {"PRICE=$(5)"},
		},
	}
}

func objects(t *testing.T, o Options) []runtime.Object {
	t.Helper()
	objs, err := Objects(o)
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

// find is the only object of a type that has this name.
func find[T runtime.Object](t *testing.T, objs []runtime.Object, name string) T {
	t.Helper()
	for _, obj := range objs {
		if o, ok := obj.(T); ok && any(o).(interface{ GetName() string }).GetName() == name {
			return o
		}
	}
	t.Fatalf("no %T %s", *new(T), name)
	panic("unreachable")
}

func TestGolden(t *testing.T) {
	for name, o := range map[string]Options{"default": {CRDs: CRDsNone}, "everything": everything()} {
		t.Run(name, func(t *testing.T) {
			got, err := YAML(objects(t, o))
			if err != nil {
				t.Fatal(err)
			}
			again, err := YAML(objects(t, o))
			if err != nil || !bytes.Equal(got, again) {
				t.Errorf("a second rendering differs (%v)", err)
			}
			golden := filepath.Join("testdata", name+".golden.yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got; -update rewrites it):\n%s", golden, diff)
			}
		})
	}
}

func TestJSONHasTheSameObjects(t *testing.T) {
	objs := objects(t, Options{})
	text, err := JSON(objs)
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Kind  string
		Items []json.RawMessage
	}
	if err := json.Unmarshal(text, &list); err != nil || list.Kind != "List" || len(list.Items) != len(objs) {
		t.Errorf("%v, kind %q, %d items, want %d", err, list.Kind, len(list.Items), len(objs))
	}
}

func TestBadOptions(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"pull policy": {Options{ImagePullPolicy: "Sometimes"}, []string{`ImagePullPolicy "Sometimes"`}},
		"image":       {Options{Image: "a b"}, []string{`Image "a b"`}},
		"replicas":    {Options{ControlReplicas: -1}, []string{"ControlReplicas -1"}},
		"paths":       {Options{CNIBinDir: "bin", CNIConfDir: "conf"}, []string{`CNIBinDir "bin"`, `CNIConfDir "conf"`}},
		"definitions": {Options{CRDs: 9}, []string{"CRDs 9"}},
		"daemon":      {Options{DaemonEnv: map[string][]string{"proxy": nil}}, []string{`no daemon "proxy"; there are ztunnel, cni-agent, control`}},
		"variable":    {Options{DaemonEnv: map[string][]string{DaemonControl: {"A", "=b"}}}, []string{`"A" is not NAME=value`, `"=b" is not NAME=value`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Objects(c.o)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v: want %q in it", err, want)
				}
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	objs := objects(t, everything())
	value := func(c *corev1.Container, name string) (values []string) {
		for _, e := range c.Env {
			if e.Name == name {
				values = append(values, e.Value)
			}
		}
		return values
	}
	ztunnel := &find[*appsv1.DaemonSet](t, objs, ZtunnelName).Spec.Template.Spec.Containers[0]
	if got := value(ztunnel, "CLUSTER_ID"); !cmp.Equal(got, []string{"other"}) {
		t.Errorf("CLUSTER_ID %q: what the caller adds stands in the place of what was there", got)
	}
	control := &find[*appsv1.Deployment](t, objs, ControlName).Spec.Template.Spec.Containers[0]
	if got := value(control, "PRICE"); !cmp.Equal(got, []string{"$$(5)"}) {
		t.Errorf("PRICE %q: Kubernetes must not expand it", got)
	}
	if got := value(ztunnel, "PRICE"); got != nil {
		t.Errorf("ztunnel has PRICE %q, which is control's", got)
	}
}
