// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/google/nftables"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/nodenet/nft"
)

// Apply makes the network of namespace ns that of p; a nil ns is the caller's own. What is so already is not written, and if
// everything is, Apply returns false. Rules are replaced in one transaction. The underlay's link must be there and up.
func Apply(ctx context.Context, ns *netns.NS, p Plan) (changed bool, err error) {
	err = nft.Inside(ctx, ns, "apply node network", func() error {
		d, err := differences(p)
		if err != nil {
			return err
		}
		changed = !d.empty()
		if err := writeSettings(d.settings); err != nil {
			return err
		}
		if err := d.routes.write(); err != nil {
			return err
		}
		if len(d.chains) == 0 {
			return nil
		}
		if err := writeChains(p.chains); err != nil {
			return err
		}
		return forgetUDP(d.installed, p.chains)
	})
	return changed, err
}

// Remove takes rules and routes away; settings stay. Removing nothing succeeds.
func Remove(ctx context.Context, ns *netns.NS) error {
	return nft.Inside(ctx, ns, "remove node network", func() error {
		d, err := differences(Plan{})
		if err != nil || d.empty() {
			return err
		}
		if err := d.routes.write(); err != nil {
			return err
		}
		return writeChains(nil)
	})
}

// Diff says in sentences how the namespace differs from p; nothing means that they are equal.
func Diff(ctx context.Context, ns *netns.NS, p Plan) ([]string, error) {
	var lines []string
	err := nft.Inside(ctx, ns, "compare node network", func() error {
		d, err := differences(p)
		lines = d.lines()
		return err
	})
	return lines, err
}

// Dump prints the routes and rules that nodenet has installed in ns, as Plan.String does.
func Dump(ctx context.Context, ns *netns.NS) (string, error) {
	var text string
	err := nft.Inside(ctx, ns, "read node network", func() error {
		chains, err := readChains()
		if err != nil {
			return err
		}
		routes, err := readRoutes()
		if err != nil {
			return err
		}
		p := Plan{chains: chains}
		for _, r := range routes {
			p.Routes = append(p.Routes, r.Route)
		}
		text = p.String()
		return nil
	})
	return text, err
}

// delta is how a namespace differs from a plan.
type delta struct {
	settings []Setting
	routes   routeDelta
	chains   []string

	installed []chain
}

func (d delta) empty() bool { return len(d.settings)+len(d.chains) == 0 && d.routes.empty() }

func (d delta) lines() []string {
	var lines []string
	for _, s := range d.settings {
		lines = append(lines, fmt.Sprintf("setting %s is not %s", s.Name, s.Value))
	}
	return append(append(lines, d.routes.lines()...), d.chains...)
}

func differences(p Plan) (delta, error) {
	var d delta
	var err error
	if d.settings, err = wrongSettings(p.Settings); err != nil {
		return delta{}, err
	}
	if d.routes, err = wrongRoutes(p.Routes); err != nil {
		return delta{}, err
	}
	have, err := readChains()
	if err != nil {
		return delta{}, err
	}
	d.chains, d.installed = compareChains(p.chains, have), have
	return d, nil
}

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
}

func readChains() ([]chain, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var chains []chain
	for _, c := range all {
		if c.Table.Name != tableName {
			continue
		}
		rules, err := conn.GetRules(table(), c)
		if err != nil {
			return nil, fmt.Errorf("list rules of chain %s: %w", c.Name, err)
		}
		read := chain{name: c.Name, base: decodeBase(c)}
		for _, r := range rules {
			read.rules = append(read.rules, decode(r.Exprs))
		}
		chains = append(chains, read)
	}
	return chains, nil
}

func writeChains(chains []chain) error {
	err := nft.Transaction(func(conn *nftables.Conn) {
		conn.AddTable(table()) // deleting a table that does not exist would fail the transaction
		conn.DelTable(table())
		if len(chains) > 0 {
			conn.AddTable(table())
		}
		addChains(conn, chains)
	})
	if err != nil {
		return fmt.Errorf("replace table %s: %w", tableName, err)
	}
	return nil
}

func addChains(conn *nftables.Conn, chains []chain) {
	added := make([]*nftables.Chain, len(chains))
	for i, c := range chains {
		added[i] = &nftables.Chain{Name: c.name, Table: table()}
		if c.base != nil {
			accept := nftables.ChainPolicyAccept
			added[i].Type, added[i].Hooknum, added[i].Policy = nftables.ChainType(c.base.kind), hooks[c.base.hook], &accept
			added[i].Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.base.priority))
		}
		conn.AddChain(added[i])
	}
	for i, c := range chains {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table(), Chain: added[i], Exprs: r.encode()})
		}
	}
}

// compareChains says what of want is missing and what of have is too much.
func compareChains(want, have []chain) []string {
	var diffs []string
	installed := map[string]chain{}
	for _, c := range have {
		installed[c.name] = c
	}
	for _, w := range want {
		h, ok := installed[w.name]
		delete(installed, w.name)
		switch {
		case !ok:
			diffs = append(diffs, "missing: chain "+w.name)
		case !reflect.DeepEqual(w.base, h.base):
			diffs = append(diffs, fmt.Sprintf("chain %s is attached otherwise", w.name))
		default:
			for i := range max(len(w.rules), len(h.rules)) {
				if i >= len(w.rules) || i >= len(h.rules) || w.rules[i] != h.rules[i] {
					diffs = append(diffs, fmt.Sprintf("chain %s rule %d: %s, want %s", w.name, i+1, nth(h.rules, i), nth(w.rules, i)))
				}
			}
		}
	}
	for _, h := range have {
		if _, left := installed[h.name]; left {
			diffs = append(diffs, "unexpected: chain "+h.name)
		}
	}
	return diffs
}

func nth(rules []rule, i int) string {
	if i >= len(rules) {
		return "nothing"
	}
	return rules[i].String()
}

var errNoLink = errors.New("is the namespace attached to the underlay?")
