// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/ambientlab/ambientlab/dataplane/admin"
)

const patience = 10 * time.Second

// host is a node's directories, and what an agent brings.
type host struct {
	t         *testing.T
	dir       string
	mu        sync.Mutex
	token     string
	ready     *admin.Readiness
	outcomes  int
	installer *Installer
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), token: "one", ready: admin.NewReadiness()}
	for _, d := range []string{"bin", "net.d", "token"} {
		must(t, os.Mkdir(h.path(d), 0o755))
	}
	h.write("ambient-cni", "the program")
	h.write("token/token", "")
	h.make()
	return h
}

func (h *host) make() {
	h.t.Helper()
	var err error
	h.installer, err = New(Config{
		Plugin: h.path("ambient-cni"), BinDir: h.path("bin"), ConfDir: h.path("net.d"), KubeconfigName: "ZZZ-istio-cni-kubeconfig",
		Entry: Entry{Type: "ambient-cni", Kubeconfig: "/k", PluginSocket: "/s"}, Readiness: h.ready,
		Installed: func(bool) { h.mu.Lock(); h.outcomes++; h.mu.Unlock() },
		Access: func() (Access, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			return Access{Server: "https://[fd00::1]:443", CA: []byte("ca"), Token: h.token, Files: []string{h.path("token/token")}}, nil
		},
	})
	must(h.t, err)
}

func (h *host) path(elem string) string { return filepath.Join(h.dir, elem) }

// write replaces a file at once, as careful writers do.
func (h *host) write(name, text string) {
	h.t.Helper()
	must(h.t, os.WriteFile(h.path(name)+".new", []byte(text), 0o644))
	must(h.t, os.Rename(h.path(name)+".new", h.path(name)))
}

func (h *host) read(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(h.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	must(h.t, err)
	return string(b)
}

func (h *host) run() (stop func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan error, 1)
	go func() { done <- h.installer.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(stop)
	return stop
}

func (h *host) await(what string, cond func() bool) {
	h.t.Helper()
	late := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			h.t.Fatalf("waiting for %s: %+v", what, h.installer.Status())
		}
	}
}

func (h *host) chained(name string) bool {
	return strings.Contains(h.read("net.d/"+name), "ambient-cni")
}

func (h *host) files() string {
	h.t.Helper()
	var names []string
	for _, d := range []string{"bin", "net.d"} {
		entries, err := os.ReadDir(h.path(d))
		must(h.t, err)
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

func conflist(name string) string {
	return `{"cniVersion":"0.4.0","name":"` + name + `","plugins":[{"type":"ptp"},{"type":"portmap"}]}`
}

func TestInstallWaitsForANetworkAndRepairs(t *testing.T) {
	h := newHost(t)
	h.run()
	h.await("the program", func() bool { return h.read("bin/ambient-cni") == "the program" })
	h.await("trouble", func() bool { return strings.Contains(h.installer.Status().Trouble, "no network configuration yet") })
	if got := h.ready.Pending(); !slices.Contains(got, "install") {
		t.Errorf("pending: %q", got)
	}
	h.write("net.d/10-net.conflist", conflist("net"))
	h.await("the chain", func() bool { return h.chained("10-net.conflist") && h.installer.Status().Installed })
	if got := h.ready.Pending(); len(got) > 0 {
		t.Errorf("pending: %q", got)
	}
	h.write("net.d/10-net.conflist", conflist("rewritten"))
	h.await("a repair", func() bool { return h.chained("10-net.conflist") })
	if !strings.Contains(h.read("net.d/10-net.conflist"), "rewritten") {
		t.Error("the writer's change is lost")
	}
	must(t, os.Remove(h.path("bin/ambient-cni")))
	h.await("the program again", func() bool { return h.read("bin/ambient-cni") == "the program" })
	h.write("bin/ambient-cni", "another program")
	h.await("the right program", func() bool { return h.read("bin/ambient-cni") == "the program" })
	info, err := os.Stat(h.path("bin/ambient-cni"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	must(t, os.Remove(h.path("net.d/10-net.conflist")))
	h.await("unreadiness", func() bool { return slices.Contains(h.ready.Pending(), "install") })
}

func TestTheFirstFileCounts(t *testing.T) {
	h := newHost(t)
	h.write("net.d/05-broken.conflist", "{")
	h.write("net.d/10-net.conflist", conflist("net"))
	h.write("net.d/20-other.conflist", conflist("other"))
	h.write("net.d/00-readme.txt", "{}")
	h.run()
	h.await("the chain", func() bool { return h.chained("10-net.conflist") })
	h.write("net.d/01-first.conflist", conflist("first"))
	h.await("a move", func() bool { return h.chained("01-first.conflist") && !h.chained("10-net.conflist") })
	if !same([]byte(h.read("net.d/10-net.conflist")), []byte(conflist("net"))) || h.chained("20-other.conflist") {
		t.Error("another network is not as it was")
	}
	must(t, os.Remove(h.path("net.d/01-first.conflist")))
	h.await("a move back", func() bool { return h.chained("10-net.conflist") })
	h.await("its status", func() bool { return h.installer.Status().File == h.path("net.d/10-net.conflist") })

	// A runtime takes the same one.
	must(t, os.Remove(h.path("net.d/05-broken.conflist")))
	all, err := libcni.ConfFiles(h.path("net.d"), []string{".conf", ".conflist", ".json"})
	must(t, err)
	slices.Sort(all)
	if want := h.path("net.d/10-net.conflist"); all[0] != want {
		t.Errorf("a runtime reads %s, installed in %s", all[0], want)
	}
}

func TestTheTokenIsRenewed(t *testing.T) {
	h := newHost(t)
	h.run()
	h.await("a kubeconfig", func() bool { return strings.Contains(h.read("net.d/ZZZ-istio-cni-kubeconfig"), "token: one") })
	info, err := os.Stat(h.path("net.d/ZZZ-istio-cni-kubeconfig"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	h.mu.Lock()
	h.token = "two"
	h.mu.Unlock()
	h.write("token/token", "two")
	h.await("the new token", func() bool { return strings.Contains(h.read("net.d/ZZZ-istio-cni-kubeconfig"), "token: two") })
	if !strings.Contains(h.read("net.d/ZZZ-istio-cni-kubeconfig"), "server: https://[fd00::1]:443") {
		t.Error(h.read("net.d/ZZZ-istio-cni-kubeconfig"))
	}
}

func TestOnePluginsFileBecomesAList(t *testing.T) {
	const conf = `{"cniVersion":"0.3.1","name":"weave","type":"weave-net"}`
	for _, ext := range []string{".conf", ".json"} {
		h := newHost(t)
		h.write("net.d/10-weave"+ext, conf)
		stop := h.run()
		h.await("a list", func() bool { return h.chained("10-weave.conflist") && h.installer.Status().Installed })
		if got := h.read("net.d/10-weave" + ext); got != "" {
			t.Errorf("still there: %s", got)
		}
		h.write("net.d/10-weave"+ext, strings.Replace(conf, "weave-net", "weave-new", 1)) // its owner writes it again
		h.await("the new list", func() bool {
			return strings.Contains(h.read("net.d/10-weave.conflist"), "weave-new") && h.chained("10-weave.conflist")
		})
		h.await("its file to go", func() bool { return h.read("net.d/10-weave"+ext) == "" })
		stop()
		must(t, h.installer.Uninstall())
		if got := h.read("net.d/10-weave" + ext); got != strings.Replace(conf, "weave-net", "weave-new", 1) || h.files() != "10-weave"+ext {
			t.Errorf("%s: %s", h.files(), got)
		}
	}
}

func TestAListOfSomebodyElseIsNotOverwritten(t *testing.T) {
	h := newHost(t)
	h.write("net.d/10-x.conf", `{"cniVersion":"0.3.1","name":"x","type":"x"}`)
	h.write("net.d/10-x.conflist", conflist("theirs"))
	h.run()
	h.await("trouble", func() bool { return strings.Contains(h.installer.Status().Trouble, "remove one of them") })
	if h.chained("10-x.conflist") {
		t.Error("chained all the same")
	}
}

func TestUninstallLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.write("net.d/10-net.conflist", conflist("net"))
	stop := h.run()
	h.await("the chain", func() bool { return h.installer.Status().Installed })
	stop()
	// An upgrade: the agent has ended, and everything is there.
	if got := h.files(); got != "ambient-cni 10-net.conflist ZZZ-istio-cni-kubeconfig" || !h.chained("10-net.conflist") {
		t.Errorf("after the agent ended: %s", got)
	}
	h.make()
	stop = h.run()
	h.await("the next agent", func() bool { return h.installer.Status().Installed })
	stop()
	h.mu.Lock()
	if h.outcomes != 1 {
		t.Errorf("installed %d times, the second agent had nothing to do", h.outcomes)
	}
	h.mu.Unlock()
	must(t, h.installer.Uninstall())
	must(t, h.installer.Uninstall())
	if got := h.files(); got != "10-net.conflist" || !same([]byte(h.read("net.d/10-net.conflist")), []byte(conflist("net"))) {
		t.Errorf("after the end: %s\n%s", got, h.read("net.d/10-net.conflist"))
	}
}

// Directories may come later than the agent, and be replaced.
func TestDirectoriesThatComeLate(t *testing.T) {
	h := newHost(t)
	must(t, os.RemoveAll(h.path("net.d")))
	h.run()
	h.await("trouble", func() bool { return h.installer.Status().Trouble != "" })
	must(t, os.Mkdir(h.path("net.d"), 0o755))
	h.write("net.d/10-net.conflist", conflist("net"))
	h.await("the chain", func() bool { return h.chained("10-net.conflist") })
}

func TestAccessThatIsNone(t *testing.T) {
	for name, access := range map[string]func() (Access, error){
		"is an http server": func() (Access, error) { return Access{Server: "http://x"}, nil },
		"no token":          func() (Access, error) { return Access{}, fmt.Errorf("no token") },
	} {
		h := newHost(t)
		h.write("net.d/10-net.conflist", conflist("net"))
		h.installer.cfg.Access = access
		h.run()
		h.await("trouble", func() bool { return h.installer.Status().Trouble != "" })
		if h.chained("10-net.conflist") {
			t.Errorf("%s: chained before the plugin can ask", name)
		}
	}
}
