// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata/*.chained")

func entry(t *testing.T) *object {
	t.Helper()
	raw, err := json.Marshal(Entry{
		Type: "ambient-cni", Kubeconfig: "/etc/cni/net.d/ZZZ-istio-cni-kubeconfig", PluginSocket: "/var/run/istio-cni/pluginevent.sock",
		LogLevel: "warn", ExcludeNamespaces: []string{"kube-system"}, AgentPods: "istio-system/cni-agent-",
	})
	must(t, err)
	o, err := parseObject(raw)
	must(t, err)
	return o
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func parsed(t *testing.T, data []byte, list bool) *network {
	t.Helper()
	n, err := parseNetwork(data, list)
	must(t, err)
	return n
}

// Configurations as projects write them, of every version that a plugin can be chained in.
func TestRealNetworksAreChained(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.conf*")
	must(t, err)
	if len(paths) < 8 {
		t.Fatalf("only %q", paths)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, ".chained") {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			before, err := os.ReadFile(path)
			must(t, err)
			n := parsed(t, before, filepath.Ext(path) == ".conflist")
			if changed, err := n.chain(entry(t)); err != nil || !changed {
				t.Fatal(changed, err)
			}
			chained := n.file()
			golden(t, path+".chained", chained)
			readByRuntime(t, before, chained)

			again := parsed(t, chained, true)
			if changed, err := again.chain(entry(t)); err != nil || changed {
				t.Errorf("a second time: %v, %v", changed, err)
			}
			again.drop("ambient-cni")
			if filepath.Ext(path) == ".conflist" && !same(before, again.file()) {
				t.Errorf("taken out again:\n%s\nwas\n%s", again.file(), before)
			}
		})
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// readByRuntime has the library that runtimes use read the list.
func readByRuntime(t *testing.T, before, chained []byte) {
	t.Helper()
	var was struct{ CNIVersion, Name string }
	must(t, json.Unmarshal(before, &was))
	list, err := libcni.ConfListFromBytes(chained)
	must(t, err)
	if list.Name != was.Name || list.Plugins[len(list.Plugins)-1].Network.Type != "ambient-cni" {
		t.Errorf("%+v", list)
	}
	var now struct{ CNIVersion string }
	must(t, json.Unmarshal(chained, &now))
	if now.CNIVersion != was.CNIVersion {
		t.Errorf("version %s became %s", was.CNIVersion, now.CNIVersion)
	}
}

func TestThePlaceInTheChain(t *testing.T) {
	ours := string(entry(t).raw())
	old := strings.Replace(ours, "warn", "debug", 1)
	list := func(plugins ...string) string {
		return `{"cniVersion":"1.0.0","name":"n","plugins":[` + strings.Join(plugins, ",") + `]}`
	}
	const first, last = `{"type":"ptp"}`, `{"type":"portmap"}`
	for name, tt := range map[string]struct {
		have, want string
		changed    bool
	}{
		"new":                {list(first, last), list(first, last, ours), true},
		"there":              {list(first, last, ours), list(first, last, ours), false},
		"another came after": {list(first, ours, last), list(first, ours, last), false},
		"of an older agent":  {list(first, old, last), list(first, ours, last), true},
		"first":              {list(ours, first), list(first, ours), true},
		"twice":              {list(first, ours, old), list(first, ours), true},
	} {
		n := parsed(t, []byte(tt.have), true)
		if changed, err := n.chain(entry(t)); err != nil || changed != tt.changed || !same(n.file(), []byte(tt.want)) {
			t.Errorf("%s: %v, %v\n%s", name, changed, err, n.file())
		}
	}
}

func TestWhatCannotBeChained(t *testing.T) {
	for _, tt := range []struct {
		text string
		list bool
		says string
	}{
		{`{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"ptp"}]}`, true, `"0.2.0"`},
		{`{"name":"n","plugins":[{"type":"ptp"}]}`, true, `cniVersion is ""`},
		{`{"cniVersion":"1.0.0","name":"n","plugins":[]}`, true, "no plugins"},
		{`{"cniVersion":"1.0.0","name":"n"}`, true, "no plugins"},
		{`{"cniVersion":"1.0.0","name":"n","plugins":["ptp"]}`, true, "plugins[0]"},
		{`{"cniVersion":"1.0.0","name":"n"}`, false, "no type"},
		{`{"cniVersion":"1.0.0","name":`, true, "EOF"},
		{`[]`, true, "not a JSON object"},
		{``, true, "not a JSON object"},
	} {
		n, err := parseNetwork([]byte(tt.text), tt.list)
		if err == nil {
			_, err = n.chain(entry(t))
		}
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.text, err)
		}
	}
}

func FuzzChain(f *testing.F) {
	paths, _ := filepath.Glob("testdata/*.conf*")
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, filepath.Ext(p) == ".conflist")
	}
	ours, err := parseObject([]byte(`{"type":"ambient-cni","x":1}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, list bool) {
		n, err := parseNetwork(data, list)
		if err != nil {
			return
		}
		if _, err := n.chain(ours); err != nil {
			return
		}
		again, err := parseNetwork(n.file(), true)
		if err != nil {
			t.Fatalf("%s: %v", n.file(), err)
		}
		if changed, err := again.chain(ours); changed && len(again.plugins) > 1 || err != nil {
			t.Fatalf("%s: not settled: %v", n.file(), err)
		}
	})
}
