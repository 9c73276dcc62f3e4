// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

func TestBaggage(t *testing.T) {
	full := Baggage{Cluster: "Kubernetes", Namespace: "shop", Workload: "cart", Type: mesh.Pod, Service: "cart", Revision: "v1", Region: "r", Zone: "z"}
	for _, tt := range []struct {
		b    Baggage
		want string
	}{
		{Baggage{}, ""},
		{full, "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=cart,service.name=cart,service.version=v1,cloud.region=r,cloud.availability_zone=z"},
		{Baggage{Workload: "a", Type: mesh.CronJob}, "k8s.cronjob.name=a"},
		{Baggage{Service: "a,b=c;d%\r\n"}, "service.name=a%2Cb%3Dc%3Bd%25%0D%0A"},
	} {
		if got := tt.b.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
		if got := ParseBaggage(tt.want); got != tt.b {
			t.Errorf("%q parses as %+v", tt.want, got)
		}
	}
}

func TestParseBaggageIsLenient(t *testing.T) {
	got := ParseBaggage("k8s.cluster.name=", "junk, service.name = cart ;ttl=1,unknown=x,cloud.region=%zz", "k8s.job.name=j,service.name=web")
	if want := (Baggage{Service: "web", Workload: "j", Type: mesh.Job}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestTraceparent(t *testing.T) {
	a, b := NewTraceparent(), NewTraceparent()
	if a.Trace == b.Trace {
		t.Error("two traces with one id")
	}
	if got, err := ParseTraceparent(a.String()); err != nil || got != a {
		t.Errorf("%s parses as %v, %v", a, got, err)
	}
	if n := a.Next(); n.Trace != a.Trace || n.Span == a.Span {
		t.Errorf("%s follows %s", n, a)
	}
	const id = "0af7651916cd43dd8448eb211c80319c"
	for _, tt := range []struct {
		text string
		ok   bool
	}{
		{"00-" + id + "-b7ad6b7169203331-01", true},
		{"cc-" + id + "-b7ad6b7169203331-01", true},
		{"cc-" + id + "-b7ad6b7169203331-01-more", true},
		{"cc-" + id + "-b7ad6b7169203331-01more", false},
		{"00-" + id + "-b7ad6b7169203331-01-more", false},
		{"ff-" + id + "-b7ad6b7169203331-01", false},
		{"00-" + strings.ToUpper(id) + "-b7ad6b7169203331-01", false},
		{"00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01", false},
		{"00-" + id + "-0000000000000000-01", false},
		{"00-" + id + "-b7ad6b716920333-01", false},
		{"", false},
	} {
		got, err := ParseTraceparent(tt.text)
		if (err == nil) != tt.ok || (tt.ok && got.TraceID() != id) {
			t.Errorf("%q: %v, %v", tt.text, got.TraceID(), err)
		}
	}
	if (Traceparent{}).TraceID() != "" {
		t.Error("no trace has an id")
	}
}

func TestForwarded(t *testing.T) {
	for _, tt := range []struct{ client, host, want string }{
		{"10.0.0.1:1234", "", `for="10.0.0.1:1234"`},
		{"[fd00::1]:1234", "cart.shop.svc", `for="[fd00::1]:1234";host=cart.shop.svc`},
	} {
		got := FormatForwarded(netip.MustParseAddrPort(tt.client), tt.host)
		if got != tt.want {
			t.Errorf("%s, want %s", got, tt.want)
		}
		client, host, err := ParseForwarded(got)
		if err != nil || client.String() != tt.client || host != tt.host {
			t.Errorf("%s parses as %v %q %v", got, client, host, err)
		}
	}
	for _, tt := range []struct {
		text, client, host string
		ok                 bool
	}{
		{`For=10.0.0.1;Host="h"`, "10.0.0.1:0", "h", true},
		{`for="[fd00::1]"`, "[fd00::1]:0", "", true},
		{`for="1.1.1.1:1", for="2.2.2.2:2"`, "1.1.1.1:1", "", true},
		{`for=unknown`, "", "", false},
		{`for`, "", "", false},
		{``, "", "", false},
	} {
		client, host, err := ParseForwarded(tt.text)
		if (err == nil) != tt.ok || (tt.ok && (client.String() != tt.client || host != tt.host)) {
			t.Errorf("%s: %v %q %v", tt.text, client, host, err)
		}
	}
}

func FuzzParseBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=Kubernetes,k8s.pod.name=x,service.name=a%2Cb;p=1")
	f.Fuzz(func(t *testing.T, s string) {
		b := ParseBaggage(s)
		if b.Workload == "" {
			b.Type = mesh.Deployment // without a name the type is not written
		}
		if again := ParseBaggage(b.String()); again != b {
			t.Fatalf("%+v became %+v", b, again)
		}
	})
}

func FuzzParseTraceparent(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseTraceparent(s)
		if err != nil {
			return
		}
		if again, err := ParseTraceparent(p.String()); err != nil || again != p {
			t.Fatalf("%s became %s, %v", p, again, err)
		}
	})
}

func FuzzParseForwarded(f *testing.F) {
	f.Add(`for="10.0.0.1:1234";host=cart`)
	f.Add(`for="[fd00::1%eth0]:1"`)
	f.Fuzz(func(t *testing.T, s string) {
		client, _, err := ParseForwarded(s)
		if err != nil || !client.IsValid() || client.Addr().Zone() != "" {
			return
		}
		if again, _, err := ParseForwarded(FormatForwarded(client, "")); err != nil || again != client {
			t.Fatalf("%v became %v, %v", client, again, err)
		}
	})
}
