// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// reader consumes the value n at path. It is never called for null, which means "not given".
type reader func(n *yaml.Node, path string)

type fields map[string]reader

// object reads a mapping whose keys are all in table.
func (d *localDecoder) object(n *yaml.Node, path string, table fields) {
	if n = follow(n); n.Kind != yaml.MappingNode {
		d.problem(orDocument(path), "want a mapping")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i].Value, follow(n.Content[i+1])
		at := strings.TrimPrefix(path+"."+key, ".")
		read, known := table[key]
		switch {
		case !known:
			d.problem(at, "unknown field; known are %s", strings.Join(slices.Sorted(maps.Keys(table)), ", "))
		case seen[key]:
			d.problem(at, "given twice")
		case value.Tag != "!!null":
			read(value, at)
		}
		seen[key] = true
	}
}

func orDocument(path string) string {
	if path == "" {
		return "document"
	}
	return path
}

func follow(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// require reports keys that the mapping n does not have.
func (d *localDecoder) require(n *yaml.Node, path string, keys ...string) {
	if n = follow(n); n.Kind != yaml.MappingNode {
		return // reported already
	}
	for _, key := range keys {
		found := false
		for i := 0; i+1 < len(n.Content); i += 2 {
			found = found || n.Content[i].Value == key && follow(n.Content[i+1]).Tag != "!!null"
		}
		if !found {
			d.problem(path+"."+key, "missing")
		}
	}
}

// each reads a list.
func (d *localDecoder) each(read reader) reader {
	return func(n *yaml.Node, path string) {
		if n = follow(n); n.Kind != yaml.SequenceNode {
			d.problem(path, "want a list")
			return
		}
		for i, item := range n.Content {
			read(follow(item), index(path, i))
		}
	}
}

// scalar reads a string. What YAML takes for a number or a truth value must be quoted.
func (d *localDecoder) scalar(set func(text string) error) reader {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
			d.problem(path, "want a string (in quotes, if it looks like something else)")
			return
		}
		if err := set(n.Value); err != nil {
			d.problem(path, "%v", err)
		}
	}
}

func (d *localDecoder) text(out *string) reader {
	return d.scalar(func(text string) error { *out = intern(text); return nil })
}

func (d *localDecoder) flag(out *bool) reader {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Decode(out) != nil {
			d.problem(path, "want true or false")
		}
	}
}

func (d *localDecoder) number(most uint64, set func(uint64)) reader {
	return func(n *yaml.Node, path string) {
		v, err := parseNumber(n, most)
		if err != nil {
			d.problem(path, "%v", err)
			return
		}
		set(v)
	}
}

func parseNumber(n *yaml.Node, most uint64) (uint64, error) {
	v, err := strconv.ParseUint(n.Value, 10, 64)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil || v > most {
		return 0, fmt.Errorf("want a number from 0 to %d", most)
	}
	return v, nil
}

// enum reads one of names, whatever the case of its letters and with or without underscores: ztunnel's own spelling and the
// wire's are both in use.
func enum[T any](d *localDecoder, out *T, names map[string]T) reader {
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
	return d.scalar(func(text string) error {
		for name, v := range names {
			if plain(name) == plain(text) {
				*out = v
				return nil
			}
		}
		return fmt.Errorf("%q: want one of %s", text, strings.Join(slices.Sorted(maps.Keys(names)), ", "))
	})
}

func (d *localDecoder) addr(out *[]netip.Addr) reader {
	return d.scalar(func(text string) error {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("%q is no IP address", text)
		}
		*out = append(*out, a.Unmap())
		return nil
	})
}

func parseNetworkAddress(text string) (mesh.NetworkAddress, error) {
	network, ip, ok := strings.Cut(text, "/")
	a, err := netip.ParseAddr(ip)
	if !ok || err != nil || a.Zone() != "" {
		return mesh.NetworkAddress{}, fmt.Errorf("%q: want <network>/<address>", text)
	}
	return mesh.NetworkAddress{Network: intern(network), Addr: a.Unmap()}, nil
}

// key reads "namespace/name".
func (d *localDecoder) key(set func(namespace, name string)) reader {
	return d.scalar(func(text string) error {
		ns, name, ok := strings.Cut(text, "/")
		if !ok || ns == "" || name == "" {
			return fmt.Errorf("%q: want namespace/name", text)
		}
		set(ns, name)
		return nil
	})
}

func (d *localDecoder) keys(out *[]string) reader {
	return d.each(d.key(func(ns, name string) { *out = append(*out, intern(ns+"/"+name)) }))
}

// ports reads a mapping of service port to target port.
func (d *localDecoder) ports(out *[]mesh.PortMap) reader {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.MappingNode {
			d.problem(path, "want a mapping of ports")
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			from, err := parseNumber(follow(n.Content[i]), 65535)
			to, terr := parseNumber(follow(n.Content[i+1]), 65535)
			if err = errors.Join(err, terr); err != nil {
				d.problem(path+"."+n.Content[i].Value, "want a port for a port")
				continue
			}
			if slices.ContainsFunc(*out, func(m mesh.PortMap) bool { return m.ServicePort == uint16(from) }) {
				d.problem(path+"."+n.Content[i].Value, "given twice")
				continue
			}
			*out = append(*out, mesh.PortMap{ServicePort: uint16(from), TargetPort: uint16(to)})
		}
		sortPorts(*out)
	}
}

func (d *localDecoder) memberships(out *[]mesh.Membership) reader {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.MappingNode {
			d.problem(path, "want a mapping of services")
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			at := fmt.Sprintf("%s[%q]", path, n.Content[i].Value)
			m := mesh.Membership{}
			d.key(func(ns, host string) { m.Key = intern(ns + "/" + host) })(n.Content[i], at)
			d.ports(&m.Ports)(follow(n.Content[i+1]), at)
			if slices.ContainsFunc(*out, func(o mesh.Membership) bool { return o.Key == m.Key }) {
				d.problem(at, "given twice")
			}
			*out = append(*out, m)
		}
		slices.SortFunc(*out, func(a, b mesh.Membership) int { return strings.Compare(a.Key, b.Key) })
	}
}

func (d *localDecoder) tunnel(out **mesh.ApplicationTunnel) reader {
	return func(n *yaml.Node, path string) {
		t := &mesh.ApplicationTunnel{}
		d.object(n, path, fields{
			"protocol": enum(d, &t.ProxyProtocol, map[string]bool{"NONE": false, "PROXY": true}),
			"port":     d.number(65535, func(v uint64) { t.Port = uint16(v) }),
		})
		*out = t
	}
}

func (d *localDecoder) gateway(out **mesh.GatewayAddress) reader {
	return func(n *yaml.Node, path string) {
		g := &mesh.GatewayAddress{HBONEPort: mesh.PortHBONE}
		d.object(n, path, fields{
			"hboneMtlsPort": d.number(65535, func(v uint64) { g.HBONEPort = uint16(v) }),
			"destination": func(n *yaml.Node, path string) {
				if n.Kind != yaml.MappingNode {
					d.scalar(func(text string) (err error) { g.Address, err = parseNetworkAddress(text); return err })(n, path)
					return
				}
				d.object(n, path, fields{"namespace": d.text(&g.Hostname.Namespace), "hostname": d.text(&g.Hostname.Host)})
				d.require(n, path, "namespace", "hostname")
			},
		})
		d.require(n, path, "destination")
		*out = g
	}
}

func (d *localDecoder) balancing(out *mesh.LoadBalancing) reader {
	scopes := map[string]mesh.Scope{
		"Region": mesh.ScopeRegion, "Zone": mesh.ScopeZone, "Subzone": mesh.ScopeSubzone, "Node": mesh.ScopeNode,
		"Cluster": mesh.ScopeCluster, "Network": mesh.ScopeNetwork,
	}
	return func(n *yaml.Node, path string) {
		d.object(n, path, fields{
			"mode": enum(d, &out.Mode, map[string]mesh.BalanceMode{
				"Standard": mesh.BalanceStandard, "Strict": mesh.BalanceStrict, "Failover": mesh.BalanceFailover, "Passthrough": mesh.BalancePassthrough,
			}),
			"healthPolicy": enum(d, &out.AllowUnhealthy, map[string]bool{"OnlyHealthy": false, "AllowAll": true}),
			"routingPreferences": d.each(func(n *yaml.Node, path string) {
				var s mesh.Scope
				enum(d, &s, scopes)(n, path)
				out.Scopes = append(out.Scopes, s)
			}),
		})
	}
}
