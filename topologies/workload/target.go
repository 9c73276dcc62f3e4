// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"net"
	"net/url"
)

// defaultPorts are what a URL without a port means; "" means that it must have one.
var defaultPorts = map[string]string{
	"http": "80", "h2c": "80", "ws": "80", "grpc": "80", "https": "443", "wss": "443", "tcp": "", "tcp-first": "", "udp": "",
}

// target is a URL that the caller knows how to call.
type target struct {
	url    *url.URL
	scheme string
	addr   string // host:port
}

func parseTarget(raw string) (target, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return target{}, fmt.Errorf("parse URL %q: %w", raw, err)
	}
	port, ok := defaultPorts[u.Scheme]
	if !ok {
		return target{}, fmt.Errorf("parse URL %q: scheme %q is not http, https, h2c, grpc, ws, wss, tcp, tcp-first or udp", raw, u.Scheme)
	}
	if u.Hostname() == "" {
		return target{}, fmt.Errorf("parse URL %q: no host", raw)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	if port == "" {
		return target{}, fmt.Errorf("parse URL %q: %s needs a port", raw, u.Scheme)
	}
	return target{url: u, scheme: u.Scheme, addr: net.JoinHostPort(u.Hostname(), port)}, nil
}
