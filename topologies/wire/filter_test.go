// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

func TestFilter(t *testing.T) {
	hbone := parsed{
		network: layers.LayerTypeIPv4, protocol: "tcp",
		src: netip.MustParseAddrPort("10.0.0.1:40000"), dst: netip.MustParseAddrPort("10.0.0.2:15008"),
		flags: tcpFlags{syn: true, ack: true},
	}
	dns := parsed{
		network: layers.LayerTypeIPv6, protocol: "udp",
		src: netip.MustParseAddrPort("[fd00::1]:40000"), dst: netip.MustParseAddrPort("[fd00::2]:53"),
	}
	arp := parsed{}
	for text, want := range map[string][3]bool{
		"":                                   {true, true, true},
		"ip":                                 {true, false, false},
		"ip6":                                {false, true, false},
		"tcp":                                {true, false, false},
		"udp port 53":                        {false, true, false},
		"tcp port 53":                        {false, false, false},
		"port 40000":                         {true, true, false},
		"host 10.0.0.2":                      {true, false, false},
		"host ::ffff:10.0.0.2":               {true, false, false},
		"not tcp":                            {false, true, true},
		"tcp and port 15008":                 {true, false, false},
		"tcp port 15008 and not host fd00::": {true, false, false},
		"port 53 or TCP Port 15008":          {true, true, false},
		"tcp and port 1 or host fd00::2":     {false, true, false},
		"icmp":                               {false, false, false},
		"syn":                                {true, false, false},
		"not syn":                            {false, true, true},
		"fin or rst":                         {false, false, false},
	} {
		f, err := ParseFilter(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := [3]bool{f.match(&hbone), f.match(&dns), f.match(&arp)}; got != want {
			t.Errorf("%q matches %v of hbone, dns, arp; want %v", text, got, want)
		}
	}
}

// The kernel may leave out what no alternative of the filter asks for.
func TestControlOnly(t *testing.T) {
	for text, want := range map[string]bool{
		"":                              false,
		"tcp":                           false,
		"syn":                           true,
		"tcp port 80 and syn":           true,
		"syn or fin or rst or icmp":     true,
		"syn or udp":                    false,
		"not syn":                       false,
		"not fin and rst and port 9000": true,
	} {
		f, err := ParseFilter(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.controlOnly(); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestFilterMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"tcp port":         `port "" is not a number`,
		"port 70000":       `port "70000"`,
		"port 0":           `port "0"`,
		"host example.com": `host "example.com" is not an address`,
		"tcp udp":          `"udp" where "and" or "or" belongs`,
		"tcp and":          "ends where a term belongs",
		"vlan 7":           `unknown word "vlan"`,
		"(tcp)":            `unknown word "(tcp)"`,
	} {
		_, err := ParseFilter(text)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), FilterSyntax) {
			t.Errorf("%q: %v; want %s, and the syntax", text, err, want)
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	f.Add("tcp port 15008 and not host ::1 or udp")
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := ParseFilter(s); err == nil {
			got.match(&parsed{})
		}
	})
}
