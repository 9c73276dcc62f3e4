// SPDX-License-Identifier: Apache-2.0

package pause

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
)

// The tests run as the holder does: as PID 1 of a namespace, in a user namespace if the user is an ordinary one.
func TestMain(m *testing.M) {
	switch os.Getenv("PAUSE_TEST_ROLE") {
	case "init":
		if err := Serve(context.Background()); err != nil {
			panic(err)
		}
	case "holder":
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(unix.Mount("proc", "/proc", "proc", 0, ""))
		os.Exit(m.Run())
	default:
		os.Exit(inNamespaces())
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func inNamespaces() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "PAUSE_TEST_ROLE=holder")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return 0
}

var reaper = sync.OnceValue(func() *child.Table {
	t := child.NewTable()
	go func() { _ = t.Run(context.Background()) }() // ends with the process, which is PID 1 of its namespace
	return t
})

const podNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

func launch(t *testing.T, flags uintptr) *Handle {
	t.Helper()
	h, err := launchRole(flags)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(h.Run)
	t.Cleanup(func() { h.Kill(); wg.Wait() })
	return h
}

func launchRole(flags uintptr) (*Handle, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return Launch(reaper(), "/usr/bin/env", []string{"env", "PAUSE_TEST_ROLE=init", exe}, flags, os.Stderr)
}

// run returns what a shell in h's namespaces prints, and its exit code.
func run(t *testing.T, h *Handle, script string, bounds *child.Bounds) (string, int) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := Start{Argv: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Bounds: bounds}
	p, err := h.Start(t.Context(), s, null, w, w)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), p.ExitCode()
}

func pod(t *testing.T) (*Handle, string) {
	t.Helper()
	lab := t.TempDir()
	for _, dir := range []string{"staging", "secret"} {
		if err := os.Mkdir(filepath.Join(lab, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(lab, "secret", "key"), []byte("k"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := launch(t, podNamespaces)
	err := h.SetUp(t.Context(), Setup{
		Hostname: "web",
		Sysctls:  []Sysctl{{"net.ipv6.conf.default.accept_dad", "0"}, {"net.no.such", "1"}},
		Root:     &Root{Staging: filepath.Join(lab, "staging"), Hide: []string{lab, "/usr/share"}},
		Binds:    []Bind{{Source: filepath.Join(lab, "secret"), Target: "/var/run/secrets/x", ReadOnly: true}},
		Files:    []File{{Path: "/etc/resolv.conf", Content: "nameserver 10.96.0.10\n"}, {Path: "/etc/only-here", Content: "new"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, lab
}

func TestPodHasItsOwnRoot(t *testing.T) {
	h, lab := pod(t)
	for _, c := range []struct{ name, script, want string }{
		{"its PID 1 is alone", "ls -d /proc/[0-9]* | head -1; cat /proc/1/comm | wc -l", "/proc/1\n1"},
		{"host name", "hostname", "web"},
		{"resolv.conf", "cat /etc/resolv.conf", "nameserver 10.96.0.10"},
		{"a file that the host has not got", "cat /etc/only-here", "new"},
		{"the rest of /etc", "head -1 /etc/passwd | cut -d: -f1", "root"},
		{"a bind", "cat /var/run/secrets/x/key", "k"},
		{"a bind is read-only", "echo x 2>&- > /var/run/secrets/x/key || echo refused", "refused"},
		{"the host's tree is read-only", "touch /usr/x 2>&1 | grep -c Read-only", "1"},
		{"sysctls are read-only", "echo 1 2>&- > /proc/sys/net/ipv4/ip_forward || echo refused", "refused"},
		{"the machine cannot be told to restart", "true 2>&- > /proc/sysrq-trigger || echo refused", "refused"},
		{"nor its interrupts to move", "true 2>&- > /proc/irq/default_smp_affinity || echo refused", "refused"},
		{"its memory is not shown", "head -c1 /proc/kcore 2>/dev/null | wc -c", "0"},
		{"nor its keys, timers and devices", "cat /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls /proc/acpi 2>/dev/null | wc -l", "0\n0"},
		{"sysctls were set", "cat /proc/sys/net/ipv6/conf/default/accept_dad 2>/dev/null || echo 0", "0"},
		{"the lab's directory is hidden", "ls -A " + lab + " 2>/dev/null | wc -l", "0"},
		{"a directory is hidden", "ls -A /usr/share | wc -l", "0"},
		{"/tmp is private", "ls -A /tmp | wc -l; touch /tmp/mine && echo writable", "0\nwritable"},
		{"/run is private", "ls /run | grep -v '^secrets$' | wc -l", "0"},
		{"devices", "echo x > /dev/null && head -c1 /dev/zero | wc -c; ls /dev/pts; ls /dev | grep -c vda", "1\nptmx\n0"},
		{"/sys shows its own links", "ls /sys/class/net", "lo"},
		{"loopback is up", "cat /proc/net/if_inet6 | grep -c lo || ip -o addr show lo | grep -c 127.0.0.1", "1"},
	} {
		if got, _ := run(t, h, c.script, nil); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestFilesAreReplaced(t *testing.T) {
	h, _ := pod(t)
	for _, content := range []string{"10.244.0.2 web", "10.244.0.3 web"} {
		if err := h.Write(t.Context(), File{Path: "/etc/hosts", Content: content}); err != nil {
			t.Fatal(err)
		}
		if got, _ := run(t, h, "cat /etc/hosts", nil); got != content {
			t.Errorf("/etc/hosts: %q, want %q", got, content)
		}
	}
}

func TestBoundsAndExitCodes(t *testing.T) {
	h, _ := pod(t)
	set, err := child.CapabilitySet(child.PodCapabilities, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, code := run(t, h, "grep CapEff /proc/self/status; mount -t tmpfs x /tmp 2>/dev/null || exit 7", &child.Bounds{Capabilities: set, NoNewPrivs: true})
	if code != 7 || !strings.Contains(out, "00000000a80425fb") {
		t.Errorf("exit code %d, %q; want 7 and Kubernetes' default capabilities", code, out)
	}
	if _, code := run(t, h, "kill -TERM $$", nil); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	h, _ := pod(t)
	run(t, h, "(sleep 0.01 &) ; exit 0", nil)
	out, _ := run(t, h, "while grep -q sleep /proc/[0-9]*/comm 2>/dev/null; do sleep 0.01; done; cat /proc/[0-9]*/stat | grep -c ' Z ' || true", nil)
	if out != "0" {
		t.Errorf("%s zombies", out)
	}
}

func TestSignalsReachTheProcess(t *testing.T) {
	h, _ := pod(t)
	null, _ := os.Open(os.DevNull)
	defer null.Close()
	r, w, _ := os.Pipe()
	defer r.Close()
	s := Start{Argv: []string{"sh", "-c", "trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done"}, Env: []string{"PATH=/usr/bin:/bin"}}
	p, err := h.Start(t.Context(), s, null, w, w)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(t.Context(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if got := p.ExitCode(); got != 5 {
		t.Errorf("exit code %d, want 5", got)
	}
	if err := p.Signal(t.Context(), syscall.SIGUSR1); err == nil {
		t.Error("a signal to a process that has ended succeeded")
	}
}

func TestAPodCannotEndItsInit(t *testing.T) {
	h, _ := pod(t)
	if out, code := run(t, h, "for s in INT TERM HUP QUIT ABRT USR1 PIPE KILL; do kill -$s 1; done; echo alive", nil); out != "alive" || code != 0 {
		t.Errorf("%q, exit code %d", out, code)
	}
	if out, _ := run(t, h, "echo still", nil); out != "still" {
		t.Errorf("after signals to its init: %q", out)
	}
}

func TestAPodEndsWithItsInit(t *testing.T) {
	h, _ := pod(t)
	null, _ := os.Open(os.DevNull)
	defer null.Close()
	p, err := h.Start(t.Context(), Start{Argv: []string{"/bin/sleep", "1000"}}, null, null, null)
	if err != nil {
		t.Fatal(err)
	}
	h.Kill()
	if got := p.ExitCode(); got != 137 {
		t.Errorf("exit code %d, want 137", got)
	}
	if err := h.Write(t.Context(), File{Path: "/tmp/x"}); err == nil {
		t.Error("an order to an init that is gone succeeded")
	}
}

// A node shares the host's tree, but not its /run; what the host has not got is added without touching the host.
func TestNodeCoversTheHostsPaths(t *testing.T) {
	dir := t.TempDir()
	must(unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	must(os.MkdirAll(filepath.Join(dir, "run"), 0o755))
	must(os.MkdirAll(filepath.Join(dir, "made-up"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "made-up", "10-lab.conflist"), []byte("{}"), 0o644))
	h := launch(t, unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWUTS)
	err := h.SetUp(t.Context(), Setup{Hostname: "node1", Reaper: true, Binds: []Bind{
		{Source: filepath.Join(dir, "run"), Target: "/run", Private: true},
		{Source: filepath.Join(dir, "made-up"), Target: "/etc/made-up/net.d", Private: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := run(t, h, "touch /var/run/mine; cat /etc/made-up/net.d/*; ls /run; head -1 /etc/passwd | cut -d: -f1", nil); got != "{}mine\nroot" {
		t.Errorf("in the node: %q", got)
	}
	if _, err := os.Stat("/etc/made-up"); !os.IsNotExist(err) {
		t.Errorf("the host got /etc/made-up: %v", err)
	}
}
