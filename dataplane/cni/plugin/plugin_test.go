// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	gocmp "github.com/google/go-cmp/cmp"
)

// fakeAgent answers on a socket, and keeps what it was asked.
type fakeAgent struct {
	socket string
	path   string // "" is /cmdadd
	status int
	answer string
	hang   bool
	asked  chan string // bodies
}

func newAgent(t *testing.T) *fakeAgent {
	t.Helper()
	a := &fakeAgent{socket: filepath.Join(t.TempDir(), "agent.sock"), status: 200, asked: make(chan string, 1)}
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != cmp.Or(a.path, "/cmdadd") {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		a.asked <- string(body)
		if a.hang {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(a.status)
		fmt.Fprintln(w, a.answer)
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return a
}

// objects is a directory with a mesh namespace, a plain one and some pods.
func objects(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for file, text := range map[string]string{
		"namespace.shop.yaml": `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"istio.io/dataplane-mode":"ambient"}}}`,
		"pod.shop.web.yaml":   "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {nodeName: n}\n",
		"pod.shop.host.yaml":  "apiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: shop}\nspec: {hostNetwork: true}\n",
		"rest.yaml":           "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: plain}\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: lone\n  namespace: plain\n",
		"bad.yaml":            "{{",
		"pod.shop.bad.yaml":   "{{",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func prevResult(t *testing.T, version string) json.RawMessage {
	t.Helper()
	v4, v6 := "", ""
	if strings.HasPrefix(version, "0.") {
		v4, v6 = `"version":"4",`, `"version":"6",`
	}
	raw := fmt.Sprintf(`{"cniVersion":%q,"interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{%s"interface":0,"address":"10.0.0.5/24","gateway":"10.0.0.1"},{%s"address":"fd00::5/64"}],"dns":{}}`, version, v4, v6)
	r, err := create.CreateFromBytes([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type call struct {
	version string
	conf    map[string]any
	pod     string // "namespace/name"; "": no Kubernetes
	timing  Timing
}

// add runs ADD and returns what it prints.
func (c call) add(t *testing.T) (string, error) {
	t.Helper()
	if c.version == "" {
		c.version = "1.1.0"
	}
	conf := map[string]any{"cniVersion": c.version, "name": "net", "type": "ambient-cni", "prevResult": prevResult(t, c.version)}
	for k, v := range c.conf {
		conf[k] = v
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	args := "IgnoreUnknown=1;UNKNOWN=x"
	if ns, name, ok := strings.Cut(c.pod, "/"); ok {
		args += ";K8S_POD_NAMESPACE=" + ns + ";K8S_POD_NAME=" + name + ";K8S_POD_UID=uid-1;K8S_POD_INFRA_CONTAINER_ID=c"
	}
	var out, log bytes.Buffer
	if c.timing == (Timing{}) {
		c.timing = Timing{Tries: 1}
	}
	p := Plugin{Stdout: &out, Stderr: &log, Timing: c.timing}
	err = p.Funcs(t.Context()).Add(&skel.CmdArgs{ContainerID: "c", Netns: "/proc/self/ns/net", IfName: "eth0", Args: args, StdinData: stdin})
	return out.String(), err
}

func TestMeshPodIsEnrolled(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			agent := newAgent(t)
			out, err := call{version: version, pod: "shop/web", conf: map[string]any{"objectsDir": objects(t), "pluginSocket": agent.socket}}.add(t)
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := errors.Join(json.Unmarshal([]byte(out), &got), json.Unmarshal(prevResult(t, version), &want)); err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("result is not the previous plugin's (-want +got):\n%s", diff)
			}
			upstream, err := os.ReadFile("../ambient/testdata/cmdadd.json")
			if err != nil {
				t.Fatal(err)
			}
			ask := strings.TrimSuffix(string(upstream), "}") + `,"UID":"uid-1"}`
			if diff := gocmp.Diff(ask, <-agent.asked); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOthersPassWithoutTheAgent(t *testing.T) {
	for name, c := range map[string]call{
		"plain namespace":    {pod: "plain/lone"},
		"host network":       {pod: "shop/host"},
		"excluded namespace": {pod: "shop/ghost", conf: map[string]any{"excludeNamespaces": []string{"shop"}}},
		"not Kubernetes":     {},
		"the agent itself":   {pod: "istio-system/cni-agent-x7k2p", conf: map[string]any{"agentPods": "istio-system/cni-agent-", "objectsDir": "/nowhere"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.conf == nil {
				c.conf = map[string]any{}
			}
			c.conf["pluginSocket"] = "/nowhere/agent.sock"
			if c.conf["objectsDir"] == nil {
				c.conf["objectsDir"] = objects(t)
			}
			if out, err := c.add(t); err != nil || !strings.Contains(out, "10.0.0.5/24") {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
}

func TestAddFailsClosed(t *testing.T) {
	refusing := newAgent(t)
	refusing.status, refusing.answer = 500, "no ztunnel connection"
	hanging := newAgent(t)
	hanging.hang = true
	dir := objects(t)
	for _, tt := range []struct {
		name string
		call call
		says string
	}{
		{"agent refuses", call{pod: "shop/web", conf: map[string]any{"objectsDir": dir, "pluginSocket": refusing.socket}}, "no ztunnel connection"},
		{"agent hangs", call{pod: "shop/web", timing: Timing{Tries: 1, Agent: 20 * time.Millisecond}, conf: map[string]any{"objectsDir": dir, "pluginSocket": hanging.socket}}, "deadline exceeded"},
		{"agent away", call{pod: "shop/web", conf: map[string]any{"objectsDir": dir, "pluginSocket": "/nowhere"}}, "does cni-agent run on this node?"},
		{"pod unknown", call{pod: "shop/ghost", timing: Timing{Tries: 3, Interval: time.Microsecond}, conf: map[string]any{"objectsDir": dir}}, "look up the pod, 3 times"},
		{"namespace unknown", call{pod: "nowhere/ghost", conf: map[string]any{"objectsDir": dir}}, "file does not exist"},
		{"pod unreadable", call{pod: "shop/bad", conf: map[string]any{"objectsDir": dir}}, "pod.shop.bad.yaml"},
		{"directory unreadable", call{pod: "shop/web", conf: map[string]any{"objectsDir": "/nowhere"}}, "/nowhere"},
		{"nowhere to look", call{pod: "shop/web"}, "neither objectsDir nor kubeconfig"},
		{"not the agent's own namespace", call{pod: "shop/cni-agent-x", conf: map[string]any{"objectsDir": "/nowhere", "agentPods": "istio-system/cni-agent-"}}, "/nowhere"},
		{"two places to look", call{pod: "shop/web", conf: map[string]any{"objectsDir": dir, "kubeconfig": "/k"}}, "both set"},
		{"first in the chain", call{pod: "shop/web", conf: map[string]any{"objectsDir": dir, "prevResult": nil}}, "must come after"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := tt.call.add(t)
			var cniErr *types.Error
			if !errors.As(err, &cniErr) || !strings.Contains(cniErr.Error(), tt.says) || out != "" {
				t.Errorf("printed %q, error %v", out, err)
			}
		})
	}
}

func TestOtherCommandsAreHarmless(t *testing.T) {
	f := (&Plugin{}).Funcs(t.Context())
	for name, cmd := range map[string]func(*skel.CmdArgs) error{"DEL": f.Del, "CHECK": f.Check, "GC": f.GC} {
		if err := cmd(&skel.CmdArgs{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for conf, ok := range map[string]bool{
		fmt.Sprintf(`{"objectsDir":%q}`, objects(t)): true, // whether the agent answers or not
		`{"objectsDir":"/nowhere"}`:                  false,
		`{"kubeconfig":"/nowhere"}`:                  false,
		`{}`:                                         false,
		`{`:                                          false,
	} {
		err := f.Status(&skel.CmdArgs{StdinData: []byte(conf)})
		var cniErr *types.Error
		if (err == nil) != ok || (err != nil && (!errors.As(err, &cniErr) || cniErr.Code != types.ErrPluginNotAvailable)) {
			t.Errorf("STATUS %s: %v", conf, err)
		}
	}
}
