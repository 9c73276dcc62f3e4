// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), -update rewrites it:\n%s", name, diff)
	}
}

func testDump() Dump {
	full := &mesh.Workload{
		UID: "Kubernetes//Pod/shop/cart-0", Name: "cart-0", Namespace: "shop", Tunnel: mesh.TunnelHBONE, ServiceAccount: "cart", Network: "n1",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Waypoint:  &mesh.GatewayAddress{Hostname: mesh.Hostname{Namespace: "shop", Host: "wp.shop.svc"}, HBONEPort: 15008},
		Node:      "node1", CanonicalName: "cart", CanonicalRevision: "v1", Type: mesh.Pod, WorkloadName: "cart", ClusterID: "Kubernetes", Capacity: 2,
		Locality: mesh.Locality{Region: "r", Zone: "z"}, NativeTunnel: true, AuthorizationPolicies: []string{"shop/p"},
		ApplicationTunnel: &mesh.ApplicationTunnel{ProxyProtocol: true, Port: 15088},
		Services:          []mesh.Membership{{Key: "shop/cart.shop.svc", Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}}}},
	}
	remote := &mesh.Workload{
		UID: "host", Namespace: "shop", NetworkMode: mesh.NetworkHost, Hostname: "db.example", Status: mesh.Unhealthy,
		NetworkGateway: &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "n2", Addr: netip.MustParseAddr("1.2.3.4")}, HBONEPort: 15008},
	}
	svc := &mesh.Service{
		Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc", VIPs: []mesh.NetworkAddress{{Network: "n1", Addr: netip.MustParseAddr("10.96.0.1")}},
		CIDRs: []mesh.NetworkPrefix{{Prefix: netip.MustParsePrefix("240.0.0.0/8")}}, Ports: []mesh.PortMap{{ServicePort: 80, TargetPort: 8080}},
		SubjectAltNames: []string{"spiffe://td/ns/a/sa/b"}, Waypoint: &mesh.GatewayAddress{Address: mesh.NetworkAddress{Addr: netip.MustParseAddr("10.96.0.9")}, HBONEPort: 15008},
		Waypoints:     []mesh.WeightedWaypoint{{Destination: mesh.GatewayAddress{Hostname: mesh.Hostname{Namespace: "shop", Host: "wp"}}, Weight: 7}},
		LoadBalancing: mesh.LoadBalancing{Mode: mesh.BalanceFailover, Scopes: []mesh.Scope{mesh.ScopeRegion, mesh.ScopeNode}, AllowUnhealthy: true},
		Families:      mesh.FamiliesDual, Canonical: true, NamespacePrivate: true,
	}
	policy := &mesh.Policy{Name: "p", Namespace: "shop", Scope: mesh.ScopePolicyWorkload, Action: mesh.Deny, DryRun: true, Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
		Namespaces: []mesh.StringMatch{{Value: "a"}, {Kind: mesh.MatchPrefix, Value: "b"}, {Kind: mesh.MatchSuffix, Value: "c"}}, NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}},
		ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "web"}}, SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, DestinationPorts: []uint16{80},
	}}}, {}}}}}
	host := "cart.shop.svc"
	return Dump{
		Workloads: []Workload{DumpWorkload(full), DumpWorkload(remote)},
		Services:  []Service{DumpService(svc, []*mesh.Workload{full}), DumpService(&mesh.Service{Name: "bare", Namespace: "shop", Hostname: "bare"}, nil)},
		Policies:  []Policy{DumpPolicy(policy), DumpPolicy(&mesh.Policy{Name: "none", Namespace: "shop", Scope: mesh.ScopePolicyNamespace})},
		StagedServices: Map[Map[Endpoint]]{
			"shop/late": DumpEndpoints("shop/late", []*mesh.Workload{{UID: "x"}}),
		},
		Certificates: []Certificates{DumpCertificates("spiffe://cluster.local/ns/shop/sa/web", "Unavailable: no CA", nil, nil)},
		WorkloadState: Map[WorkloadState]{"uid-1": {State: "Up", Info: WorkloadInfo{Name: "cart-0", Namespace: "shop", ServiceAccount: "cart"},
			Connections: Connections{Inbound: []Connection{{Src: "10.0.0.2:5", OriginalDst: &host, ActualDst: "10.0.0.1:8080", Protocol: "HBONE"}, {Src: "10.0.0.3:5", ActualDst: "10.0.0.1:8080", Protocol: "TCP"}}}}},
	}
}

func TestConfigDumpGolden(t *testing.T) {
	rec := httptest.NewRecorder()
	New(Config{Dump: func() any { return testDump() }}).AdminHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/config_dump", nil))
	if got := rec.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	golden(t, "config_dump.json", rec.Body.String())
}

// TestDumpReadsAsIstioctl decodes into the types that istioctl ztunnel-config has for the fields it shows.
func TestDumpReadsAsIstioctl(t *testing.T) {
	b, err := json.Marshal(testDump())
	if err != nil {
		t.Fatal(err)
	}
	type gateway struct {
		Destination string `json:"destination"`
	}
	var d struct {
		Workloads []*struct {
			WorkloadIPs       []string `json:"workloadIps"`
			Waypoint          *gateway `json:"waypoint"`
			ApplicationTunnel struct {
				Protocol string  `json:"protocol"`
				Port     *uint16 `json:"port"`
			} `json:"applicationTunnel"`
			Capacity uint32 `json:"capacity"`
		} `json:"workloads"`
		Services []*struct {
			Addresses []string       `json:"vips"`
			Ports     map[string]int `json:"ports"`
			Endpoints map[string]*struct {
				Port map[uint16]uint16 `json:"port"`
			} `json:"endpoints"`
		} `json:"services"`
		Policies []*struct {
			Rules [][][]*struct {
				Namespaces []struct{ Exact, Suffix, Prefix string } `json:"namespaces"`
			} `json:"rules"`
		} `json:"policies"`
		WorkloadState map[string]struct {
			State       string
			Connections struct {
				Inbound []struct {
					OriginalDst string `json:"originalDst"`
				} `json:"inbound"`
			} `json:"connections"`
		} `json:"workloadstate"`
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	switch {
	case d.Workloads[0].Waypoint.Destination != "shop/wp.shop.svc", *d.Workloads[0].ApplicationTunnel.Port != 15088:
		t.Errorf("workload %+v", d.Workloads[0])
	case d.Services[0].Addresses[0] != "n1/10.96.0.1", d.Services[0].Endpoints["Kubernetes//Pod/shop/cart-0"].Port[80] != 8080:
		t.Errorf("service %+v", d.Services[0])
	case d.Policies[0].Rules[0][0][0].Namespaces[1].Prefix != "b":
		t.Errorf("policy %+v", d.Policies[0])
	case d.WorkloadState["uid-1"].Connections.Inbound[0].OriginalDst != "cart.shop.svc":
		t.Errorf("state %+v", d.WorkloadState)
	}
}

func TestDumpCertificates(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(123456789012345678), NotBefore: from, NotAfter: from.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	got := DumpCertificates("id", "Available", []*x509.Certificate{cert}, []*x509.Certificate{cert})
	text, err := base64.StdEncoding.DecodeString(got.CertChain[0].PEM)
	if err != nil || !strings.HasPrefix(string(text), "-----BEGIN CERTIFICATE-----\n") {
		t.Errorf("pem %q, %v", text, err)
	}
	got.CertChain[0].PEM, got.RootCerts[0].PEM = "", ""
	c := Certificate{SerialNumber: "123456789012345678", ValidFrom: "2026-01-02T03:04:05Z", ExpirationTime: "2026-01-03T03:04:05Z"}
	if diff := cmp.Diff(Certificates{Identity: "id", State: "Available", CertChain: List[Certificate]{c}, RootCerts: List[Certificate]{c}}, got); diff != "" {
		t.Errorf("certificates (-want +got):\n%s", diff)
	}
}
