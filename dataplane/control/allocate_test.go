// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networking "istio.io/api/networking/v1alpha3"
	istiov1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/source"
)

func entry(ns, name string, change func(*istiov1.ServiceEntry), hosts ...string) *istiov1.ServiceEntry {
	e := &istiov1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	e.Spec.Hosts, e.Spec.Resolution = hosts, networking.ServiceEntry_STATIC
	e.Spec.Ports = []*networking.ServicePort{{Number: 80, Name: "http"}}
	if change != nil {
		change(e)
	}
	return e
}

// vips are the addresses of each service, by its key.
func vips(s *Snapshot) map[string]string {
	out := map[string]string{}
	for _, svc := range s.Services {
		var all []string
		for _, v := range svc.VIPs {
			all = append(all, v.Addr.String())
		}
		out[svc.Key()] = strings.Join(all, " ")
	}
	return out
}

func entries(all ...*istiov1.ServiceEntry) *source.Objects {
	o := &source.Objects{ServiceEntries: map[string]*istiov1.ServiceEntry{}}
	for _, e := range all {
		o.ServiceEntries[e.Namespace+"/"+e.Name] = e
	}
	return o
}

func TestWhoGetsAnAddress(t *testing.T) {
	got := vips(Compile(entries(
		entry("shop", "static", nil, "static.example.com", "second.example.com"),
		entry("shop", "dns", func(e *istiov1.ServiceEntry) { e.Spec.Resolution = networking.ServiceEntry_DNS }, "dns.example.com"),
		entry("shop", "none", func(e *istiov1.ServiceEntry) { e.Spec.Resolution = networking.ServiceEntry_NONE }, "none.example.com"),
		entry("shop", "own", func(e *istiov1.ServiceEntry) { e.Spec.Addresses = []string{"10.1.2.3"} }, "own.example.com"),
		entry("shop", "unwilling", func(e *istiov1.ServiceEntry) { e.Labels = map[string]string{labelAllocate: "False"} }, "unwilling.example.com"),
		entry("shop", "wild", nil, "*.example.net"),
		entry("shop", "recorded", func(e *istiov1.ServiceEntry) {
			e.Status.Addresses = []*networking.ServiceEntryAddress{{Value: "240.240.9.9", Host: "Recorded.example.com"}}
		}, "recorded.example.com"),
	), Settings{}))
	for key, want := range map[string]string{
		"shop/none.example.com": "", "shop/own.example.com": "10.1.2.3", "shop/unwilling.example.com": "", "shop/*.example.net": "",
		"shop/recorded.example.com": "240.240.9.9",
	} {
		if got[key] != want {
			t.Errorf("%s: got %q, want %q", key, got[key], want)
		}
		delete(got, key)
	}
	seen := map[string]bool{}
	for key, all := range got {
		v4, v6, _ := strings.Cut(all, " ")
		a, b := netip.MustParseAddr(v4), netip.MustParseAddr(v6)
		if !automaticV4.Contains(a) || !automaticV6.Contains(b) || seen[v4] || seen[v6] {
			t.Errorf("%s: got %s", key, all)
		}
		seen[v4], seen[v6] = true, true
	}
	if len(got) != 3 {
		t.Errorf("got addresses for %v", got)
	}
	for key, all := range vips(Compile(entries(entry("shop", "static", nil, "static.example.com")), Settings{NoAutoAllocate: true})) {
		if all != "" {
			t.Errorf("switched off: %s has %s", key, all)
		}
	}
}

// An address is the same for every control plane, and stays when entries come and go, also among those that would have
// fallen on one.
func TestAddressesAreStable(t *testing.T) {
	const many = 2000
	var all []*istiov1.ServiceEntry
	for i := range many {
		all = append(all, entry("shop", fmt.Sprintf("e%d", i), func(e *istiov1.ServiceEntry) {
			e.CreationTimestamp = metav1.NewTime(time.Unix(int64(i), 0))
		}, fmt.Sprintf("h%d.example.com", i)))
	}
	whole := vips(Compile(entries(all...), Settings{}))
	distinct := map[string]bool{}
	for _, v := range whole {
		distinct[v] = true
	}
	if len(distinct) != many {
		t.Errorf("%d hosts share %d addresses", many, len(distinct))
	}
	if diff := cmp.Diff(whole, vips(Compile(entries(all...), Settings{}))); diff != "" {
		t.Errorf("another control plane says:\n%s", diff)
	}
	older := vips(Compile(entries(all[:many/2]...), Settings{}))
	for key, v := range older {
		if whole[key] != v {
			t.Errorf("%s moved from %s to %s when newer entries came", key, v, whole[key])
		}
	}
}

// One that must go on from where its hash leads, until there is none left.
func TestAddressesThatCollide(t *testing.T) {
	small := netip.MustParsePrefix("192.0.2.0/29")
	taken := map[netip.Addr]bool{}
	for i := range 6 {
		a, ok := free(small, entryHost{"ns/e", "host"}, taken)
		if !ok || taken[a] || !small.Contains(a) || a == small.Addr() || a == nth(small, 7) {
			t.Errorf("address %d is %s, %v", i, a, ok)
		}
		taken[a] = true
	}
	if a, ok := free(small, entryHost{"ns/e", "host"}, taken); ok {
		t.Errorf("the seventh of six is %s", a)
	}
}
