// SPDX-License-Identifier: Apache-2.0

package zc

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/admin"
)

// upstream is a dump as an older ztunnel of upstream's writes it: workloads are an object.
func upstream(t *testing.T) *admin.Dump {
	t.Helper()
	data, err := os.ReadFile("testdata/upstream.json")
	if err != nil {
		t.Fatal(err)
	}
	d := new(admin.Dump)
	if err := json.Unmarshal(data, d); err != nil {
		t.Fatal(err)
	}
	return d
}

func text(t Table) string {
	lines := []string{strings.Join(t.Header, "|")}
	for _, r := range t.Rows {
		lines = append(lines, strings.Join(r, "|"))
	}
	return strings.Join(lines, "\n")
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestTablesHaveIstioctlsColumns(t *testing.T) {
	all := upstream(t)
	d := Pick(all, Filter{})
	for _, c := range []struct {
		name string
		got  Table
		want string
	}{
		{"workloads", Workloads(d, all.Services), `NAMESPACE|POD NAME|ADDRESS|NODE|WAYPOINT|PROTOCOL
shop|cart|10.0.0.2|node2|None|HBONE
shop|web|10.0.0.1|node1|wp|HBONE`},
		{"services", Services(d, all.Services), `NAMESPACE|SERVICE NAME|SERVICE VIP|WAYPOINT|ENDPOINTS
shop|cart|10.96.0.1|wp|1/2
shop|wp|10.96.0.9|None|0/0`},
		{"policies", Policies(d), `NAMESPACE|POLICY NAME|ACTION|SCOPE
plain|other|Deny|Namespace
root|all|Deny (dry run)|Global
shop|named|Allow|WorkloadSelector`},
		{"certificates", Certificates(d, noon), `CERTIFICATE NAME|TYPE|STATUS|VALID CERT|SERIAL NUMBER|NOT AFTER|NOT BEFORE
spiffe://cluster.local/ns/shop/sa/cart|NA|Unavailable|false|NA|NA|NA
spiffe://cluster.local/ns/shop/sa/web|Leaf|Available|true|ff|2026-01-02T00:00:00Z|2026-01-01T00:00:00Z
spiffe://cluster.local/ns/shop/sa/web|Root|Available|false|10|2025-02-01T00:00:00Z|2025-01-01T00:00:00Z`},
		{"connections", Connections(d, all, false, false, noon), `WORKLOAD|DIRECTION|LOCAL|REMOTE|REMOTE TARGET|PROTOCOL
cart.shop|Inbound|cart.shop:8080|web.shop:50000|cart.shop.svc|HBONE
web.shop|Outbound|web.shop:40000|cart.shop:15008|cart.shop.svc:80|HBONE`},
		{"raw connections", Connections(d, all, true, true, noon), `WORKLOAD|DIRECTION|LOCAL|REMOTE|REMOTE TARGET|PROTOCOL|AGE|SENT|RECEIVED|SOURCE IDENTITY|DESTINATION IDENTITY
cart.shop|Inbound|10.0.0.2:8080|10.0.0.1:50000|cart.shop.svc|HBONE|2s|5|7|spiffe://cluster.local/ns/shop/sa/web|
web.shop|Outbound|10.0.0.1:40000|10.0.0.2:15008|10.96.0.1:80|HBONE||0|0||`},
	} {
		if diff := cmp.Diff(c.want, text(c.got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestPick(t *testing.T) {
	all := upstream(t)
	d := Pick(all, Filter{Pod: "cart", PodNamespace: "shop", PodUID: "uid-2"})
	if len(d.Workloads) != 1 || len(d.Services) != 1 || len(d.Policies) != 1 || len(d.Certificates) != 1 || len(d.WorkloadState) != 1 {
		t.Errorf("of cart: %d workloads, %d services, %d policies, %d certificates, %d states, want one of each",
			len(d.Workloads), len(d.Services), len(d.Policies), len(d.Certificates), len(d.WorkloadState))
	}
	if got := text(Policies(Pick(all, Filter{Pod: "web", PodNamespace: "shop"}))); !strings.Contains(got, "named") || !strings.Contains(got, "all") || strings.Contains(got, "other") {
		t.Errorf("policies of web: %s", got)
	}
	if d := Pick(all, Filter{Pod: "gone", PodNamespace: "shop"}); len(d.Workloads)+len(d.Services)+len(d.Policies)+len(d.Certificates)+len(d.WorkloadState) != 0 {
		t.Errorf("of a pod that is not there: %+v", d)
	}
	if d := Pick(all, Filter{Namespace: "plain"}); len(d.Workloads) != 0 || len(d.Policies) != 1 || len(d.Certificates) != 0 {
		t.Errorf("of a namespace: %+v", d)
	}
	if d := Pick(all, Filter{Address: "10.96.0.1"}); len(d.Services) != 1 || len(d.Workloads) != 0 {
		t.Errorf("of an address: %+v", d)
	}
	if got := text(Connections(Pick(all, Filter{Direction: "inbound"}), all, true, false, noon)); strings.Contains(got, "Outbound") || !strings.Contains(got, "Inbound") {
		t.Errorf("inbound: %s", got)
	}
	if got := text(Connections(Pick(all, Filter{Direction: "outbound"}), all, true, false, noon)); strings.Contains(got, "Inbound") || !strings.Contains(got, "Outbound") {
		t.Errorf("outbound: %s", got)
	}
}

// Nodes that know different things are told apart; those that agree are not mentioned.
func TestMerged(t *testing.T) {
	one, two := upstream(t), upstream(t)
	all, notes := Dumps{"node1": one, "node2": two}.Merged()
	if len(notes) > 0 || len(all.Workloads) != 2 || len(all.Services) != 2 || len(all.Policies) != 3 || len(all.Certificates) != 4 {
		t.Errorf("two that agree: %v, %+v", notes, all)
	}
	two.Workloads = two.Workloads[1:]
	two.Policies[0].Action = "Deny"
	_, notes = Dumps{"node1": one, "node2": two}.Merged()
	want := []string{"workload c//Pod/shop/web: unknown to node2", "policy shop/named: node2 does not have it as node1 has"}
	if diff := cmp.Diff(want, notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}
