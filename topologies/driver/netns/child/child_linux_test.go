// SPDX-License-Identifier: Apache-2.0

package child

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The table reaps every child of its process, so that its tests run in a process of their own.
func TestMain(m *testing.M) {
	if os.Getenv("CHILD_TEST_INIT") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "CHILD_TEST_INIT=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if os.Geteuid() == 0 { // started by something that leaves a capability to its children
			cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: []uintptr{unix.CAP_NET_RAW}}
		}
		if cmd.Run() != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runningTable(t *testing.T) *Table {
	t.Helper()
	table := NewTable()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = table.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return table
}

func shell(script string, out *os.File) Spec {
	return Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Files: []*os.File{os.Stdin, out, os.Stderr}}
}

func TestExitCodes(t *testing.T) {
	table := runningTable(t)
	for _, c := range []struct {
		script string
		want   int
	}{{"exit 0", 0}, {"exit 3", 3}, {"kill -9 $$", 137}} {
		p, err := table.Start(shell(c.script, os.Stderr))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.ExitCode(); got != c.want {
			t.Errorf("%s: exit code %d, want %d", c.script, got, c.want)
		}
		if err := p.Signal(syscall.SIGTERM); err == nil {
			t.Errorf("%s: a signal to a reaped process was sent", c.script)
		}
	}
}

func TestManyAtOnceLoseNoStatus(t *testing.T) {
	table := runningTable(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			p, err := table.Start(shell("exit "+string(rune('0'+i%10)), os.Stderr))
			if err != nil {
				t.Error(err)
			} else if got := p.ExitCode(); got != i%10 {
				t.Errorf("exit code %d, want %d", got, i%10)
			}
		})
	}
	wg.Wait()
}

func TestMissingExecutableIsNamed(t *testing.T) {
	table := runningTable(t)
	_, err := table.Start(Spec{Path: "/no/such/thing", Argv: []string{"thing"}})
	if err == nil || !strings.Contains(err.Error(), "/no/such/thing") {
		t.Errorf("got %v, want an error that names the path", err)
	}
}

func TestBoundsHoldInTheProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("dropping from the bounding set needs CAP_SETPCAP: this user has not got it")
	}
	table := runningTable(t)
	set, err := CapabilitySet(PodCapabilities, []string{"CAP_NET_ADMIN"}, []string{"NET_RAW"})
	if err != nil {
		t.Fatal(err)
	}
	out := statusOf(t, table, &Bounds{Capabilities: set, NoNewPrivs: true})
	// Kubernetes' default is a80425fb; with NET_ADMIN (bit 12), without NET_RAW (bit 13).
	for _, want := range []string{"CapBnd:\t00000000a80415fb", "CapEff:\t00000000a80415fb", "NoNewPrivs:\t1", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("status has not %q:\n%s", want, out)
		}
	}
	if next := statusOf(t, table, nil); !bytes.Contains(next, []byte("NoNewPrivs:\t0")) {
		t.Errorf("the next child is bound too:\n%s", next)
	}
}

// statusOf is what a child says of its own rights.
func statusOf(t *testing.T, table *Table, b *Bounds) []byte {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := shell("grep -E 'Cap(Bnd|Eff|Inh|Amb)|NoNewPrivs' /proc/self/status", w)
	s.Bounds = b
	p, err := table.Start(s)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(r)
	if p.ExitCode() != 0 {
		t.Fatalf("exit code %d", p.ExitCode())
	}
	return out
}

func TestCapabilitySet(t *testing.T) {
	for _, c := range []struct {
		name            string
		base, add, drop []string
		want            uint64
	}{
		{"default", PodCapabilities, nil, nil, 0xa80425fb},
		{"drop all, add one", PodCapabilities, []string{"NET_ADMIN"}, []string{"ALL"}, 1 << 12},
		{"prefix and case", nil, []string{"cap_kill"}, nil, 1 << 5},
	} {
		got, err := CapabilitySet(c.base, c.add, c.drop)
		if err != nil || got != c.want {
			t.Errorf("%s: %#x, %v; want %#x", c.name, got, err, c.want)
		}
	}
	if _, err := CapabilitySet(nil, []string{"NET_ADMNI"}, nil); err == nil {
		t.Error("an unknown name was accepted")
	}
}
