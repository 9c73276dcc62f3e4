// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/nodenet/nft"
)

const errorName = "NetworkPolicy rules (nodenet's, in a CNI project's place)"

// Apply makes the policy table of namespace ns that of p, in one transaction; a nil ns is the caller's own. If it is so already,
// Apply writes nothing and returns false, so that counters go on. If it fails, the rules are what they were.
func Apply(ctx context.Context, ns *netns.NS, p Plan) (changed bool, err error) {
	err = nft.Inside(ctx, ns, "apply "+errorName, func() error {
		have, err := read()
		if err != nil {
			return err
		}
		if changed = len(compare(p.content, have)) > 0; !changed {
			return nil
		}
		return write(p.content)
	})
	return changed, err
}

// Remove takes the table away. Removing nothing succeeds.
func Remove(ctx context.Context, ns *netns.NS) error {
	_, err := Apply(ctx, ns, Plan{})
	return err
}

// Diff says in sentences how the namespace differs from p; nothing means that they are equal.
func Diff(ctx context.Context, ns *netns.NS, p Plan) ([]string, error) {
	var lines []string
	err := nft.Inside(ctx, ns, "compare "+errorName, func() error {
		have, err := read()
		lines = compare(p.content, have)
		return err
	})
	return lines, err
}

// Dump prints the rules that are installed, with what they have counted, as Plan.Nftables does.
func Dump(ctx context.Context, ns *netns.NS) (string, error) {
	var text string
	err := nft.Inside(ctx, ns, "read "+errorName, func() error {
		have, err := read()
		text = have.String()
		return err
	})
	return text, err
}

// Refused says in sentences what the rules have dropped since they were last written; nothing if they dropped nothing.
func Refused(ctx context.Context, ns *netns.NS) ([]string, error) {
	var lines []string
	err := nft.Inside(ctx, ns, "read "+errorName, func() error {
		have, err := read()
		for _, c := range have.chains {
			for i, r := range c.rules {
				if n := c.counts[i].packets; r.verb == drop && n > 0 {
					lines = append(lines, fmt.Sprintf("%s: NetworkPolicy dropped %d packets, %s", c.name, n, r.note))
				}
			}
		}
		return err
	})
	return lines, err
}

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
}

func read() (content, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return content{}, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return content{}, fmt.Errorf("list tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }) {
		return content{}, nil
	}
	var c content
	if c.sets, err = readSets(conn); err != nil {
		return content{}, err
	}
	c.chains, err = readChains(conn)
	return c, err
}

func readSets(conn *nftables.Conn) ([]set, error) {
	list, err := conn.GetSets(table())
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	var out []set
	for _, k := range list {
		elements, err := conn.GetSetElements(k)
		if err != nil {
			return nil, fmt.Errorf("list elements of set %s: %w", k.Name, err)
		}
		s := set{name: k.Name, family: ipv4, spans: decodeSpans(elements)}
		if k.KeyType.Bytes == v6Bytes {
			s.family = ipv6
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b set) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func readChains(conn *nftables.Conn) ([]chain, error) {
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var out []chain
	for _, k := range all {
		if k.Table.Name != tableName {
			continue
		}
		rules, err := conn.GetRules(table(), k)
		if err != nil {
			return nil, fmt.Errorf("list rules of chain %s: %w", k.Name, err)
		}
		c := chain{name: k.Name}
		if k.Priority != nil {
			c.priority = int(*k.Priority)
		}
		for _, r := range rules {
			one, n := decode(r)
			c.rules, c.counts = append(c.rules, one), append(c.counts, n)
		}
		out = append(out, c)
	}
	return out, nil
}

func write(c content) error {
	err := nft.Transaction(func(conn *nftables.Conn) {
		conn.AddTable(table()) // deleting a table that does not exist would fail the transaction
		conn.DelTable(table())
		if len(c.chains) > 0 {
			conn.AddTable(table())
		}
		addSets(conn, c.sets)
		addChains(conn, c.chains)
	})
	if err != nil {
		return fmt.Errorf("replace table %s: %w", tableName, err)
	}
	return nil
}

// addSets ignores errors because of sets that have a name these calls return none; the kernel's come with the transaction's answer.
func addSets(conn *nftables.Conn, sets []set) {
	for i, s := range sets {
		k := s.kernel(i + 1)
		_ = conn.AddSet(k, nil)
		for part := range slices.Chunk(s.elements(), elementsAtOnce) {
			_ = conn.SetAddElements(k, part)
		}
	}
}

func addChains(conn *nftables.Conn, chains []chain) {
	added := make([]*nftables.Chain, len(chains))
	for i, c := range chains {
		added[i] = &nftables.Chain{Name: c.name, Table: table()}
		if c.priority != 0 {
			pass := nftables.ChainPolicyAccept
			added[i].Type, added[i].Hooknum, added[i].Policy = nftables.ChainTypeFilter, nftables.ChainHookForward, &pass
			added[i].Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.priority))
		}
		conn.AddChain(added[i])
	}
	for i, c := range chains {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table(), Chain: added[i], Exprs: r.encode(), UserData: r.userData()})
		}
	}
}

// compare says what of want is missing and what of have is too much. What was counted does not count.
func compare(want, have content) []string {
	diffs := compareSets(want.sets, have.sets)
	if len(want.chains) != len(have.chains) {
		diffs = append(diffs, fmt.Sprintf("there are %d chains, want %d", len(have.chains), len(want.chains)))
	}
	for i := range min(len(want.chains), len(have.chains)) {
		w, h := want.chains[i], have.chains[i]
		if w.name != h.name || w.priority != h.priority {
			diffs = append(diffs, fmt.Sprintf("chain %s with priority %d, want %s with priority %d", h.name, h.priority, w.name, w.priority))
			continue
		}
		for j := range max(len(w.rules), len(h.rules)) {
			if j >= len(w.rules) || j >= len(h.rules) || w.rules[j] != h.rules[j] {
				diffs = append(diffs, fmt.Sprintf("chain %s rule %d: %s, want %s", w.name, j+1, nth(h.rules, j), nth(w.rules, j)))
			}
		}
	}
	return diffs
}

func compareSets(want, have []set) []string {
	var diffs []string
	installed := map[string]string{}
	for _, s := range have {
		installed[s.name] = s.text()
	}
	for _, s := range want {
		if text, there := installed[s.name]; !there || text != s.text() {
			diffs = append(diffs, "missing or different: set "+s.name)
		}
		delete(installed, s.name)
	}
	for _, s := range have {
		if _, left := installed[s.name]; left {
			diffs = append(diffs, "unexpected: set "+s.name)
		}
	}
	return diffs
}

func nth(rules []rule, i int) string {
	if i >= len(rules) {
		return "nothing"
	}
	return rules[i].text(count{})
}
