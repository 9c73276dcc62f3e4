// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"fmt"
	"strconv"
	"strings"
)

func itoa(i int) string { return strconv.Itoa(i) }

// ParsePort reads "8080", "8080@any", "8080@pod" or "8080@localhost".
func ParsePort(s string) (Port, error) {
	num, bind, has := strings.Cut(s, "@")
	n, err := strconv.ParseUint(num, 10, 16)
	if err != nil || n == 0 {
		return Port{}, fmt.Errorf("port %q: want a number from 1 to 65535, or number@bind", s)
	}
	p := Port{Number: uint16(n), Bind: BindAny}
	if !has {
		return p, nil
	}
	switch p.Bind = Bind(bind); p.Bind {
	case BindAny, BindPod, BindLocalhost:
		return p, nil
	}
	return Port{}, fmt.Errorf("port %q: bind %q is not any, pod or localhost", s, bind)
}

// Listener is one protocol of a Serve: its YAML field, the workload binary's flag, and its ports.
type Listener struct {
	Field string
	Flag  string
	UDP   bool
	Ports []Port
}

// Listeners are the protocols in a fixed order, those without ports too.
func (s Serve) Listeners() []Listener {
	return []Listener{
		{Field: "http", Flag: "http", Ports: s.HTTP},
		{Field: "h2c", Flag: "h2c", Ports: s.H2C},
		{Field: "grpc", Flag: "grpc", Ports: s.GRPC},
		{Field: "tls", Flag: "tls", Ports: s.TLS},
		{Field: "tcp", Flag: "tcp", Ports: s.TCP},
		{Field: "tcpServerFirst", Flag: "tcp-server-first", Ports: s.TCPServerFirst},
		{Field: "udp", Flag: "udp", UDP: true, Ports: s.UDP},
	}
}

// Args are the workload binary's arguments that serve s: "serve" and its flags.
func (s Serve) Args() []string {
	args := []string{"serve"}
	for _, l := range s.Listeners() {
		for _, p := range l.Ports {
			args = append(args, "--"+l.Flag, p.String())
		}
	}
	return args
}
