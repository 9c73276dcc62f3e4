// SPDX-License-Identifier: Apache-2.0

package ambient

import (
	"encoding/json"
	"net"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func TestDecide(t *testing.T) {
	mode := func(m string) map[string]string { return map[string]string{mesh.LabelDataplaneMode: m} }
	for _, tt := range []struct {
		name string
		pod  Pod
		ns   map[string]string
		want bool
	}{
		{"nobody asks", Pod{Namespace: "shop"}, nil, false},
		{"namespace asks", Pod{Namespace: "shop"}, mode("ambient"), true},
		{"pod asks", Pod{Namespace: "shop", Labels: mode("ambient")}, nil, true},
		{"pod opts out", Pod{Namespace: "shop", Labels: mode("none")}, mode("ambient"), false},
		{"pod asks, namespace opts out", Pod{Namespace: "shop", Labels: mode("ambient")}, mode("none"), true},
		{"unknown mode", Pod{Namespace: "shop", Labels: mode("sidecar")}, mode("ambient"), false},
		{"host network", Pod{Namespace: "shop", HostNetwork: true}, mode("ambient"), false},
		{"sidecar", Pod{Namespace: "shop", Annotations: map[string]string{mesh.AnnotationSidecar: "{}"}}, mode("ambient"), false},
		{"excluded namespace", Pod{Namespace: "kube-system", Labels: mode("ambient")}, nil, false},
		{"ztunnel", Pod{Namespace: SystemNamespace, Labels: map[string]string{"app": "ztunnel"}}, mode("ambient"), false},
		{"an app of that name elsewhere", Pod{Namespace: "shop", Labels: map[string]string{"app": "ztunnel"}}, mode("ambient"), true},
	} {
		if got := Decide(tt.pod, tt.ns, []string{"kube-system"}); got.Enrol != tt.want || got.Why == "" {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}

// The golden file is what upstream's plugin sends: the encoding of package net's types under CNIPluginAddEvent's names.
func TestRequestIsUpstreams(t *testing.T) {
	golden, err := os.ReadFile("testdata/cmdadd.json")
	if err != nil {
		t.Fatal(err)
	}
	var got AddRequest
	if err := json.Unmarshal(golden, &got); err != nil {
		t.Fatal(err)
	}
	zero := 0
	want := AddRequest{Netns: "/proc/self/ns/net", PodName: "web", PodNamespace: "shop", IPs: []AddIP{
		{Interface: &zero, Address: net.IPNet{IP: net.ParseIP("10.0.0.5"), Mask: net.CIDRMask(24, 32)}, Gateway: net.ParseIP("10.0.0.1")},
		{Address: net.IPNet{IP: net.ParseIP("fd00::5"), Mask: net.CIDRMask(64, 128)}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
	sent, err := json.Marshal(want)
	if diff := cmp.Diff(string(golden), string(sent)); err != nil || diff != "" {
		t.Errorf("encoded: %v (-want +got):\n%s", err, diff)
	}
}

func FuzzRequest(f *testing.F) {
	golden, err := os.ReadFile("testdata/cmdadd.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add([]byte(`{"Netns":"/x","UID":"u","IPs":[{"Address":{"IP":"","Mask":null}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var first, second AddRequest
		if json.Unmarshal(b, &first) != nil {
			return
		}
		sent, err := json.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(sent, &second); err != nil {
			t.Fatalf("%s: %v", sent, err)
		}
		if again, _ := json.Marshal(second); string(again) != string(sent) {
			t.Fatalf("%s became %s", sent, again)
		}
	})
}
