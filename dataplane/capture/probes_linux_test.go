// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/capture"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func addrs(pairs ...string) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for i := 0; i < len(pairs); i += 2 {
		out[netip.MustParseAddr(pairs[i])] = pairs[i+1]
	}
	return out
}

func applyProbes(t *testing.T, host *netns.NS, p capture.Probes) bool {
	t.Helper()
	changed, err := capture.ApplyProbes(t.Context(), host, p)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func readProbes(t *testing.T, host *netns.NS) (map[netip.Addr]string, uint64) {
	t.Helper()
	pods, probes, ok, err := capture.ReadProbes(t.Context(), host)
	if err != nil || !ok {
		t.Fatalf("there: %v, %v", ok, err)
	}
	return pods, probes
}

func TestProbesGolden(t *testing.T) {
	p := capture.Probes{UID: 0, Pods: addrs("10.0.0.7", "uid-b", "10.0.0.5", "uid-a", "fd00::5", "uid-a", "::ffff:10.0.0.9", "uid-c")}
	golden(t, "probes.nft", p.Nftables())
}

// otherSource is what HOST_PROBE_SNAT_IP and HOST_PROBE_SNAT_IPV6 may say.
var otherSource = capture.ProbeSource{V4: netip.MustParseAddr("169.254.9.9"), V6: netip.MustParseAddr("fd16:9254:9::9")}

func TestProbesAreKept(t *testing.T) {
	host := nstest.New(t)
	steps := []struct {
		name    string
		want    capture.Probes
		has     map[netip.Addr]string
		changed bool
	}{
		{"new", capture.Probes{Pods: addrs("10.0.0.5", "a", "fd00::5", "a")}, addrs("10.0.0.5", "a", "fd00::5", "a"), true},
		{"the same", capture.Probes{Pods: addrs("10.0.0.5", "a", "fd00::5", "a")}, addrs("10.0.0.5", "a", "fd00::5", "a"), false},
		{"one more", capture.Probes{Pods: addrs("10.0.0.5", "a", "10.0.0.6", "b")}, addrs("10.0.0.5", "a", "10.0.0.6", "b"), true},
		{"an address that another pod has now", capture.Probes{Pods: addrs("10.0.0.5", "c")}, addrs("10.0.0.5", "c"), true},
		{"a pod without an address", capture.Probes{Pods: addrs("10.0.0.8", "d"), Unknown: []string{"c"}}, addrs("10.0.0.5", "c", "10.0.0.8", "d"), true},
		{"in the other form", capture.Probes{Pods: addrs("::ffff:10.0.0.8", "d")}, addrs("10.0.0.8", "d"), true},
		{"another user", capture.Probes{UID: 7, Pods: addrs("10.0.0.8", "d")}, addrs("10.0.0.8", "d"), true},
		{"another source", capture.Probes{UID: 7, Pods: addrs("10.0.0.8", "d"), Source: otherSource}, addrs("10.0.0.8", "d"), true},
		{"the same source", capture.Probes{UID: 7, Pods: addrs("10.0.0.8", "d"), Source: otherSource}, addrs("10.0.0.8", "d"), false},
		{"none", capture.Probes{UID: 7, Source: otherSource}, addrs(), true},
	}
	for _, s := range steps {
		if changed := applyProbes(t, host, s.want); changed != s.changed {
			t.Errorf("%s: changed %v", s.name, changed)
		}
		if has, _ := readProbes(t, host); !maps.Equal(has, s.has) {
			t.Errorf("%s: %s", s.name, cmp.Diff(s.has, has, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })))
		}
	}
	for range 2 {
		if err := capture.RemoveProbes(t.Context(), host); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, ok, err := capture.ReadProbes(t.Context(), host); ok || err != nil {
		t.Errorf("removed: %v, %v", ok, err)
	}
}

// What others do to the table is found and repaired; what others have beside it is left alone.
func TestProbesAreRepaired(t *testing.T) {
	host, nft := nstest.New(t), tool(t, "nft")
	p := capture.Probes{Pods: addrs("10.0.0.5", "a")}
	command(t, host, "add table ip nat\nadd chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; }\nadd rule ip nat POSTROUTING masquerade\n", nft, "-f", "-")
	others := command(t, host, "", nft, "list", "table", "ip", "nat")
	applyProbes(t, host, p)
	want := command(t, host, "", nft, "list", "table", "inet", "istio-ambient-nat")
	if diff := cmp.Diff(strings.Fields(p.Nftables()), strings.Fields(want)); diff != "" {
		t.Errorf("as nft shows it (-want +got):\n%s", diff)
	}
	for _, harm := range []string{
		"flush chain inet istio-ambient-nat istio-postrouting", "flush chain inet istio-ambient-nat postrouting",
		"flush set inet istio-ambient-nat istio-inpod-probes-v4", "delete table inet istio-ambient-nat",
		"add rule inet istio-ambient-nat istio-postrouting drop", "add chain inet istio-ambient-nat x",
	} {
		command(t, host, harm+"\n", nft, "-f", "-")
		if !applyProbes(t, host, p) {
			t.Errorf("%s: not noticed", harm)
		}
		if got := command(t, host, "", nft, "list", "table", "inet", "istio-ambient-nat"); got != want {
			t.Errorf("%s:\n%s", harm, got)
		}
	}
	if err := capture.RemoveProbes(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if got := command(t, host, "", nft, "list", "ruleset"); got != others {
		t.Errorf("left:\n%s", got)
	}
}

// A node and a pod: whose source the pod sees, beside every kind of masquerading that a host may have.
func TestProbesOnTheWire(t *testing.T) {
	for _, beside := range []string{"nothing", "nft", "iptables", "iptables-legacy"} {
		t.Run(beside, func(t *testing.T) {
			host, pod := nstest.New(t), nstest.New(t)
			nstest.Connect(t, nstest.End{NS: host, Name: "veth", Addresses: []string{"10.9.0.1/24", "fd09::1/64"}},
				nstest.End{NS: pod, Name: "eth0", Addresses: []string{"10.9.0.2/24", "10.9.0.3/24", "fd09::2/64"}})
			command(t, pod, "", tool(t, "ip"), "route", "add", "default", "via", "10.9.0.1")
			command(t, pod, "", tool(t, "ip"), "-6", "route", "add", "default", "via", "fd09::1")
			masquerade(t, host, beside)
			applyProbes(t, host, capture.Probes{Pods: addrs("10.9.0.2", "a", "fd09::2", "a")})
			for target, want := range map[string]netip.Addr{
				"10.9.0.2": mesh.ProbeSourceV4, "10.9.0.3": netip.MustParseAddr("10.9.0.1"), "fd09::2": mesh.ProbeSourceV6,
			} {
				if got := seenFrom(t, host, pod, target); got != want {
					t.Errorf("%s sees %s, want %s", target, got, want)
				}
			}
			if _, probes := readProbes(t, host); probes != 2 {
				t.Errorf("%d probes counted, want 2", probes)
			}
			applyProbes(t, host, capture.Probes{Pods: addrs("10.9.0.2", "a", "fd09::2", "a"), Source: otherSource})
			for target, want := range map[string]netip.Addr{"10.9.0.2": otherSource.V4, "fd09::2": otherSource.V6} {
				if got := seenFrom(t, host, pod, target); got != want {
					t.Errorf("%s sees %s, want %s", target, got, want)
				}
			}
			applyProbes(t, host, capture.Probes{UID: 12345, Pods: addrs("10.9.0.2", "a")})
			if got := seenFrom(t, host, pod, "10.9.0.2"); got == mesh.ProbeSourceV4 {
				t.Error("a process of another user is taken for kubelet")
			}
		})
	}
}

func masquerade(t *testing.T, host *netns.NS, how string) {
	t.Helper()
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock")) // an ordinary user cannot open the host's
	switch how {
	case "nft":
		command(t, host, "add table ip cni\nadd chain ip cni post { type nat hook postrouting priority srcnat - 0; }\nadd rule ip cni post masquerade\n", tool(t, "nft"), "-f", "-")
	case "iptables", "iptables-legacy":
		command(t, host, "", tool(t, how), "-w", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
	}
}

// seenFrom makes a connection from the host and returns the caller's address as the pod sees it.
func seenFrom(t *testing.T, host, pod *netns.NS, target string) netip.Addr {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var l net.Listener
	nstest.In(t, pod, func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(target, "0"))
		return err
	})
	defer l.Close()
	var c net.Conn
	nstest.In(t, host, func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		return err
	})
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// The reply must find its way back, too.
	go fmt.Fprintln(s, "well")
	var answer string
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(c, &answer); err != nil || answer != "well" {
		t.Errorf("%s answers %q, %v", target, answer, err)
	}
	return s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}
