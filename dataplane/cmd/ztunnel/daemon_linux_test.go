// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// TestDaemon starts the real binary as an operator would, has it carry a call, asks its admin server and ends it.
func TestDaemon(t *testing.T) {
	web, cart := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: web, Name: "eth0", Addresses: []string{"10.77.0.2/24"}}, nstest.End{NS: cart, Name: "eth0", Addresses: []string{"10.77.0.3/24"}})
	d := startDaemon(t, "LOG_FORMAT=json", "TERMINATION_GRACE_PERIOD_SECONDS=2")
	d.enrol(t, "web", web)
	d.enrol(t, "cart", cart)
	pingPong(t, web, cart, 1, 1)
	eventually(t, "both sides are in the access log", func() bool { return strings.Count(d.stdout.String(), telemetry.MessageComplete) == 2 })
	for line := range strings.Lines(d.stdout.String()) {
		e, err := telemetry.ParseRecord([]byte(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if e.Record.Src.Identity.ServiceAccount != "web" || e.Record.Dst.Identity.ServiceAccount != "cart" || e.Record.BytesSent != 1024 {
			t.Errorf("access log: %s", line)
		}
	}
	if m := d.get("15020", "/stats/prometheus"); !strings.Contains(m, `istio_tcp_connections_opened_total{`) || !strings.Contains(m, "workload_manager_active_proxy_count 2") {
		t.Errorf("metrics:\n%s", m)
	}
	if s := d.post("/logging?level=debug"); !strings.Contains(s, "debug") {
		t.Errorf("log level: %q", s)
	}
	if s := d.post("/quitquitquit"); !strings.Contains(s, "shutdown") {
		t.Errorf("quit: %q", s)
	}
	if err := d.wait(); err != nil {
		t.Errorf("ended with %v:\n%s", err, d.stderr.String())
	}
	for _, ns := range []*netns.NS{web, cart} {
		l, err := ns.ListenTCP(t.Context(), netip.MustParseAddrPort("0.0.0.0:15001"), netns.SocketOptions{})
		if err != nil {
			t.Errorf("a listener was left behind: %v", err)
			continue
		}
		l.Close()
	}
}

func (d *daemon) post(path string) string {
	rsp, err := d.client().Post("http://127.0.0.1:15000"+path, "", nil)
	if err != nil {
		return ""
	}
	defer rsp.Body.Close()
	body, err := io.ReadAll(rsp.Body)
	if err != nil || rsp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// TestRefusals: what cannot work says so at once, names itself and the cure.
func TestRefusals(t *testing.T) {
	nstest.Require(t)
	bin := build(t)
	good := []string{"LOCAL_XDS=workloads: []", "FAKE_CA=true", "INPOD_UDS=/nonexistent/z.sock"}
	for _, c := range []struct {
		name    string
		environ []string
		prepare func(*exec.Cmd)
		code    int
		says    string
	}{
		{"bad variables", []string{"PROXY_MODE=x", "IPV6_ENABLED=maybe"}, nil, 2, "PROXY_MODE"},
		{"a bad document", []string{"LOCAL_XDS=workloads: [{nonsense: 1}]", "FAKE_CA=true"}, nil, 1, "nonsense"},
		{"no privilege", good, func(cmd *exec.Cmd) {
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER // nobody there, and nobody to the namespaces outside
			cmd.SysProcAttr.Credential = nil
		}, 1, "SYS_ADMIN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(bin)
			var out bytes.Buffer
			cmd.Env, cmd.Stderr = c.environ, &out
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if c.prepare != nil {
				c.prepare(cmd)
			}
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != c.code || !strings.Contains(out.String(), c.says) {
				t.Errorf("ended with %v, want code %d and a word about %s:\n%s", err, c.code, c.says, out.String())
			}
		})
	}
	t.Run("a taken port", func(t *testing.T) {
		ns := nstest.New(t)
		l, err := ns.ListenTCP(t.Context(), netip.MustParseAddrPort("127.0.0.1:15000"), netns.SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		cmd := exec.Command(bin)
		var out bytes.Buffer
		cmd.Env, cmd.Stderr = good, &out
		nstest.In(t, ns, cmd.Start)
		if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "admin port 127.0.0.1:15000") || !strings.Contains(out.String(), "another ztunnel") {
			t.Errorf("ended with %v:\n%s", err, out.String())
		}
	})
}

// build makes the binary as the Makefile does.
func build(t testing.TB) string {
	t.Helper()
	bin := t.TempDir() + "/ztunnel"
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	return bin
}
