// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// ApplyProbes makes the host's table that of p. Where only addresses differ, only they change, so that counters go on; it writes
// nothing, and returns false, where nothing does.
func ApplyProbes(ctx context.Context, host *netns.NS, p Probes) (changed bool, err error) {
	p = p.unmapped()
	err = inside(ctx, host, "apply the rule for probes", func(t tables) error {
		have, err := t.readProbes()
		if err != nil {
			return err
		}
		for a, uid := range have.pods {
			if _, ok := p.Pods[a]; !ok && slices.Contains(p.Unknown, uid) {
				p.Pods[a] = uid
			}
		}
		switch {
		case !have.whole(p):
			changed = true
			return t.writeProbes(p)
		case !reflect.DeepEqual(have.pods, p.Pods):
			changed = true
			return t.writeElements(have, p)
		}
		return nil
	})
	return changed, err
}

// RemoveProbes takes the host's table away. Removing nothing succeeds.
func RemoveProbes(ctx context.Context, host *netns.NS) error {
	return inside(ctx, host, "remove the rule for probes", func(t tables) error {
		have, err := t.readProbes()
		if err != nil || have.table == nil {
			return err
		}
		t.conn.DelTable(have.table)
		return t.conn.Flush()
	})
}

// ReadProbes is what the host has: the addresses of pods, and how many probes were translated; false if it has no such table.
func ReadProbes(ctx context.Context, host *netns.NS) (pods map[netip.Addr]string, probes uint64, ok bool, err error) {
	err = inside(ctx, host, "read the rule for probes", func(t tables) error {
		have, err := t.readProbes()
		pods, probes, ok = have.pods, have.packets, have.table != nil
		return err
	})
	return pods, probes, ok, err
}

// installedProbes is the table as it is.
type installedProbes struct {
	table   *nftables.Table // nil: there is none
	sets    map[Family]*nftables.Set
	chains  map[string]string // name: how it is attached, and its rules
	pods    map[netip.Addr]string
	packets uint64
}

// whole reports whether everything but the addresses is as p has it.
func (i installedProbes) whole(p Probes) bool {
	return i.table != nil && i.sets[IPv4] != nil && i.sets[IPv6] != nil && reflect.DeepEqual(i.chains, p.chainTexts())
}

func (t tables) readProbes() (installedProbes, error) {
	have := installedProbes{sets: map[Family]*nftables.Set{}, chains: map[string]string{}, pods: map[netip.Addr]string{}}
	all, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return have, fmt.Errorf("list tables: %w", err)
	}
	at := slices.IndexFunc(all, func(t *nftables.Table) bool { return t.Name == probeTable })
	if at < 0 {
		return have, nil
	}
	have.table = all[at]
	if err := t.readProbeSets(&have); err != nil {
		return have, err
	}
	chains, err := t.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return have, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != probeTable {
			continue
		}
		rules, err := t.conn.GetRules(have.table, c)
		if err != nil {
			return have, fmt.Errorf("list rules of chain %s in table %s: %w", c.Name, probeTable, err)
		}
		text := attachedProbes(c)
		for _, r := range rules {
			text += "\n" + expressions(r.Exprs)
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					have.packets += c.Packets
				}
			}
		}
		have.chains[c.Name] = text
	}
	return have, nil
}

func (t tables) readProbeSets(have *installedProbes) error {
	sets, err := t.conn.GetSets(have.table)
	if err != nil {
		return fmt.Errorf("list sets of table %s: %w", probeTable, err)
	}
	for _, s := range sets {
		for _, f := range []Family{IPv4, IPv6} {
			if s.Name != probeSet(f) || s.KeyType.Bytes != keyType(f).Bytes || s.IsMap || s.Interval {
				continue
			}
			have.sets[f] = s
			elements, err := t.conn.GetSetElements(s)
			if err != nil {
				return fmt.Errorf("list elements of set %s: %w", s.Name, err)
			}
			for _, e := range elements {
				if a, ok := netip.AddrFromSlice(e.Key); ok {
					have.pods[a] = e.Comment
				}
			}
		}
	}
	return nil
}

func keyType(f Family) nftables.SetDatatype {
	if f == IPv4 {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

// writeProbes replaces the table, in one transaction.
func (t tables) writeProbes(p Probes) error {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: probeTable}
	t.conn.AddTable(table) // deleting a table that does not exist would fail the transaction
	t.conn.DelTable(table)
	table = t.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: probeTable})
	for _, f := range []Family{IPv4, IPv6} {
		set := &nftables.Set{Table: table, Name: probeSet(f), KeyType: keyType(f)}
		if err := t.conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("add set %s: %w", set.Name, err)
		}
		if err := t.addElements(set, p, p.elements(f)); err != nil {
			return err
		}
	}
	accept := nftables.ChainPolicyAccept
	base := t.conn.AddChain(&nftables.Chain{
		Name: string(postrouting), Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(priorityProbes), Policy: &accept,
	})
	rules := t.conn.AddChain(&nftables.Chain{Name: probeChain, Table: table})
	for _, f := range []Family{IPv4, IPv6} {
		t.conn.AddRule(&nftables.Rule{Table: table, Chain: rules, Exprs: p.rule(f)})
	}
	t.conn.AddRule(&nftables.Rule{Table: table, Chain: base, Exprs: jumpToProbes()})
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("replace table %s: %w", probeTable, err)
	}
	return nil
}

func (t tables) addElements(set *nftables.Set, p Probes, addrs []netip.Addr) error {
	var elements []nftables.SetElement
	for _, a := range addrs {
		elements = append(elements, nftables.SetElement{Key: a.AsSlice(), Comment: p.Pods[a]})
	}
	if len(elements) == 0 {
		return nil
	}
	if err := t.conn.SetAddElements(set, elements); err != nil {
		return fmt.Errorf("add to set %s: %w", set.Name, err)
	}
	return nil
}

// writeElements changes addresses that differ; one that another pod has now is taken out and put in again.
func (t tables) writeElements(have installedProbes, p Probes) error {
	for _, f := range []Family{IPv4, IPv6} {
		var gone []nftables.SetElement
		for a, uid := range have.pods {
			if now, ok := p.Pods[a]; familyOf(a) == f && (!ok || now != uid) {
				gone = append(gone, nftables.SetElement{Key: a.AsSlice()})
			}
		}
		if len(gone) > 0 {
			if err := t.conn.SetDeleteElements(have.sets[f], gone); err != nil {
				return fmt.Errorf("remove from set %s: %w", probeSet(f), err)
			}
		}
		added := slices.DeleteFunc(p.elements(f), func(a netip.Addr) bool { uid, ok := have.pods[a]; return ok && uid == p.Pods[a] })
		if err := t.addElements(have.sets[f], p, added); err != nil {
			return err
		}
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("change sets of table %s: %w", probeTable, err)
	}
	return nil
}

// rule is a family's. The address family comes first, as the set's keys are of it.
func (p Probes) rule(f Family) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if f == IPv6 {
		family = unix.NFPROTO_IPV6
	}
	offset, length := addrPosition(f, Destination)
	e := []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: reg}, compare(false, native(p.UID))}
	e = append(e, encodeMatch(f, tcp)...)
	e = append(e, encodeFamily(f)...)
	return append(e,
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: reg, SetName: probeSet(f)},
		&expr.Counter{},
		&expr.Immediate{Register: reg, Data: p.Source.Of(f).AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: reg, RegAddrMax: reg},
	)
}

func jumpToProbes() []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: probeChain}}
}

// chainTexts are the chains as readProbes finds them when they are right.
func (p Probes) chainTexts() map[string]string {
	return map[string]string{
		string(postrouting): fmt.Sprintf("nat hook %d priority %d accept\n%s", *nftables.ChainHookPostrouting, priorityProbes, expressions(jumpToProbes())),
		probeChain:          "\n" + expressions(p.rule(IPv4)) + "\n" + expressions(p.rule(IPv6)),
	}
}

func attachedProbes(c *nftables.Chain) string {
	if c.Hooknum == nil || c.Priority == nil {
		return ""
	}
	policy := "accept"
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		policy = "drop"
	}
	return fmt.Sprintf("%s hook %d priority %d %s", c.Type, *c.Hooknum, *c.Priority, policy)
}

// expressions print a rule so that equal ones read the same: without counts, and without what is only known when a rule is written.
func expressions(exprs []expr.Any) string {
	var words []string
	for _, e := range exprs {
		switch x := e.(type) {
		case *expr.Counter:
			words = append(words, "counter")
		case *expr.Lookup:
			words = append(words, fmt.Sprintf("lookup %d %s %v", x.SourceRegister, x.SetName, x.Invert))
		case *expr.NAT:
			n := *x
			n.Specified = false // the library's name for a flag that the kernel sets by itself
			words = append(words, fmt.Sprintf("nat %+v", n))
		default:
			words = append(words, fmt.Sprintf("%T%+v", e, e))
		}
	}
	return strings.ReplaceAll(strings.Join(words, " "), "*expr.", "")
}
