// SPDX-License-Identifier: Apache-2.0

// Package nstest runs kernel tests in namespaces of their own, for root and for ordinary users alike, and gives tests
// namespaces and links that are gone when the test is. Only tests import it.
// Sources: clone(2), user_namespaces(7), pid_namespaces(7).
package nstest

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// Environment variables by which Main tells the process it starts what it is.
const (
	envInside   = "AMBIENTLAB_NSTEST"      // "1" in the process that runs the tests; else why namespaces are refused
	envUserNS   = "AMBIENTLAB_NSTEST_USER" // "1": use a user namespace also as root
	ordinaryUID = 65534
)

// Main runs the tests of a package in a new network and mount namespace; an ordinary user's in a new user namespace too. Use
// it as: func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }.
func Main(m *testing.M) int {
	if os.Getenv(envInside) != "" {
		return m.Run()
	}
	flag.Parse()
	if f := flag.Lookup("test.fuzz"); f != nil && f.Value.String() != "" {
		return runHere(m, "fuzzing has its workers' descriptors where Main would put its own")
	}
	user := os.Getuid() != 0 || os.Getenv(envUserNS) == "1"
	code, err := rerun(user, os.Getuid(), os.Args[1:])
	if err != nil {
		return runHere(m, "namespaces are refused here: "+err.Error())
	}
	return code
}

// runHere runs the tests that need no namespace; New skips the others and says why.
func runHere(m *testing.M, why string) int {
	if err := os.Setenv(envInside, why); err != nil {
		panic(err) // only a bad name does that
	}
	return m.Run()
}

// AsOrdinaryUser runs this test binary once more with the tests that match pattern, as root of a user namespace that is
// owned by an ordinary user, and fails t if they fail.
func AsOrdinaryUser(t *testing.T, pattern string) {
	t.Helper()
	if os.Getenv(envUserNS) != "" || os.Getenv(envInside) != "1" || os.Getuid() != 0 {
		t.Skip("these tests run as an ordinary user already, or namespaces are refused")
	}
	t.Setenv(envUserNS, "1")
	code, err := rerun(true, ordinaryUID, []string{"-test.run=" + pattern, "-test.v=" + fmt.Sprint(testing.Verbose())})
	if err != nil {
		t.Fatalf("start tests as an ordinary user: %v", err)
	}
	if code != 0 {
		t.Fatalf("as an ordinary user: exit code %d", code)
	}
}

func rerun(user bool, uid int, args []string) (int, error) {
	// The death signal goes by thread, so this one must outlive the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self, err := os.Open("/proc/self/exe") // a path may lie in a directory that the ordinary user cannot enter
	if err != nil {
		return 0, err
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", args...)
	cmd.ExtraFiles = []*os.File{self}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envInside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if user {
		cmd.Env = append(cmd.Env, envUserNS+"=1")
		gid := os.Getgid()
		if uid == ordinaryUID {
			gid = ordinaryUID
		}
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
		cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true}
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Require skips t where namespaces are refused.
func Require(t testing.TB) {
	t.Helper()
	if why := os.Getenv(envInside); why != "1" {
		t.Skip(why)
	}
}

// New makes a namespace whose loopback link is up and whose links will have no duplicate address detection.
func New(t testing.TB) *netns.NS {
	t.Helper()
	Require(t)
	n, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	In(t, n, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644); err != nil && !os.IsNotExist(err) {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return n
}

// In runs fn in n and ends the test if it fails.
func In(t testing.TB, n *netns.NS, fn func() error) {
	t.Helper()
	if err := n.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// End is one end of a link: addresses are in CIDR form.
type End struct {
	NS        *netns.NS
	Name      string
	Addresses []string
}

// Connect joins two namespaces by a veth pair that is up.
func Connect(t testing.TB, a, b End) {
	t.Helper()
	In(t, a.NS, func() error {
		// Where both ends have one index, the kernel takes up to a second to notice the carrier.
		attrs := netlink.LinkAttrs{Name: a.Name, Index: firstIndex + int(nextIndex.Add(1))}
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: b.Name, PeerNamespace: netlink.NsFd(b.NS.Fd())})
	})
	for _, e := range []End{a, b} {
		In(t, e.NS, e.up)
	}
	for _, e := range []End{a, b} {
		In(t, e.NS, func() error { return e.carrier(t) })
	}
}

const firstIndex = 10_000

// nextIndex numbers one end of each link, out of the way of the numbers that the kernel gives.
var nextIndex atomic.Int32

// carrier waits until the link carries packets; what is sent before is lost.
func (e End) carrier(t testing.TB) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		l, err := netlink.LinkByName(e.Name)
		if err != nil || l.Attrs().OperState == netlink.OperUp {
			return err
		}
		select {
		case <-t.Context().Done():
			return t.Context().Err()
		case <-tick.C:
		}
	}
}

func (e End) up() error {
	l, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	for _, cidr := range e.Addresses {
		ip, network, err := net.ParseCIDR(cidr)
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: network.Mask}, Flags: syscall.IFA_F_NODAD}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", cidr, e.Name, err)
		}
	}
	return netlink.LinkSetUp(l)
}
