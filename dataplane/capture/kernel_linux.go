// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/google/nftables"
)

// tables is the nftables half of what is installed in the namespace of the calling thread.
type tables struct{ conn *nftables.Conn }

func openTables() (tables, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return tables{}, fmt.Errorf("open nftables: %w", err)
	}
	return tables{conn}, nil
}

func (t tables) close() { _ = t.conn.CloseLasting() }

// ours are the tables that capture owns, installed or not.
func ours() []*nftables.Table {
	var all []*nftables.Table
	for _, k := range []Kind{NAT, Mangle, Raw} {
		all = append(all, &nftables.Table{Family: nftables.TableFamilyINet, Name: tablePrefix + string(k)})
	}
	return all
}

// read returns capture's chains as they are installed.
func (t tables) read() ([]nftChain, error) {
	installed, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	own := map[string]bool{}
	for _, o := range ours() {
		for _, i := range installed {
			own[o.Name] = own[o.Name] || i.Name == o.Name
		}
	}
	list, err := t.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var chains []nftChain
	for _, i := range installed {
		if !own[i.Name] {
			continue
		}
		for _, c := range list {
			if c.Table.Name != i.Name {
				continue
			}
			chain, err := t.readChain(i, c)
			if err != nil {
				return nil, err
			}
			chains = append(chains, chain)
		}
	}
	return chains, nil
}

func (t tables) readChain(table *nftables.Table, c *nftables.Chain) (nftChain, error) {
	rules, err := t.conn.GetRules(table, c)
	if err != nil {
		return nftChain{}, fmt.Errorf("list rules of chain %s in table %s: %w", c.Name, table.Name, err)
	}
	chain := nftChain{table: table.Name, name: c.Name, base: decodeBase(c)}
	for _, r := range rules {
		chain.rules = append(chain.rules, decode(r.Exprs))
	}
	return chain, nil
}

// write replaces whatever capture has installed by chains, in one transaction.
func (t tables) write(chains []nftChain) error {
	for _, o := range ours() {
		t.conn.AddTable(o) // deleting a table that does not exist would fail the transaction
		t.conn.DelTable(o)
	}
	var table *nftables.Table
	added := map[[2]string]*nftables.Chain{}
	for _, c := range chains {
		if table == nil || table.Name != c.table {
			table = t.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: c.table})
		}
		chain := &nftables.Chain{Name: c.name, Table: table}
		if c.base != nil {
			accept := nftables.ChainPolicyAccept
			chain.Type, chain.Hooknum, chain.Priority = c.base.attachment()
			chain.Policy = &accept
		}
		added[[2]string{c.table, c.name}] = t.conn.AddChain(chain)
	}
	// Rules come last because a jump needs its target.
	for _, c := range chains {
		chain := added[[2]string{c.table, c.name}]
		for _, r := range c.rules {
			t.conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: r.encode()})
		}
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("replace tables: %w", err)
	}
	return nil
}

// compareChains says what of want is missing and what of have is too much; counters do not count.
func compareChains(want, have []nftChain) []string {
	var diffs []string
	index := func(chains []nftChain) map[string]nftChain {
		m := map[string]nftChain{}
		for _, c := range chains {
			m[c.table+" "+c.name] = c
		}
		return m
	}
	wanted, installed := index(want), index(have)
	for _, c := range want {
		name := c.table + " " + c.name
		h, ok := installed[name]
		if !ok {
			diffs = append(diffs, fmt.Sprintf("missing: chain %s", name))
			continue
		}
		diffs = append(diffs, compareChain(name, c, h)...)
	}
	for _, c := range have {
		if name := c.table + " " + c.name; wanted[name].name == "" {
			diffs = append(diffs, fmt.Sprintf("unexpected: chain %s", name))
		}
	}
	return diffs
}

func compareChain(name string, want, have nftChain) []string {
	var diffs []string
	if !reflect.DeepEqual(want.base, have.base) {
		diffs = append(diffs, fmt.Sprintf("chain %s: attached as %q, want %q", name, attached(have.base), attached(want.base)))
	}
	for i := range max(len(want.rules), len(have.rules)) {
		w, h := ruleText(want.rules, i), ruleText(have.rules, i)
		switch {
		case w == h:
		case h == "":
			diffs = append(diffs, fmt.Sprintf("missing: chain %s rule %d: %s", name, i+1, w))
		case w == "":
			diffs = append(diffs, fmt.Sprintf("unexpected: chain %s rule %d: %s", name, i+1, h))
		default:
			diffs = append(diffs, fmt.Sprintf("chain %s rule %d: %s, want %s", name, i+1, h, w))
		}
	}
	return diffs
}

func attached(b *base) string {
	if b == nil {
		return "not attached"
	}
	return b.String()
}

// ruleText identifies a rule without its counter; "" is no rule.
func ruleText(rules []nftRule, i int) string {
	if i >= len(rules) {
		return ""
	}
	r := rules[i]
	r.packets, r.bytes = 0, 0
	return strings.Replace(r.String(), "counter packets 0 bytes 0 ", "", 1)
}
