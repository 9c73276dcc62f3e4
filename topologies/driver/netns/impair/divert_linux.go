// SPDX-License-Identifier: Apache-2.0

package impair

import (
	"encoding/hex"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// table is the one that keeps a path's packets from the kernel, after packet sockets have seen them.
func (p Path) table() *nftables.Table {
	name := "ambientlab-" + p.In.Name
	if p.To != nil {
		name += "-" + hex.EncodeToString(p.To)
	}
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: name}
}

func (p Path) divert() error {
	err := p.In.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(p.table())
		chain := c.AddChain(&nftables.Chain{
			Table: t, Name: "divert", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter,
			Device: p.In.Name,
		})
		var rule []expr.Any
		if p.To != nil {
			rule = []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: uint32(len(p.To))},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.To},
			}
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(rule, &expr.Verdict{Kind: expr.VerdictDrop})})
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("divert packets from %s: %w (has the kernel nftables' netdev family?)", p.In.Name, err)
	}
	return nil
}

func (p Path) release() error {
	err := p.In.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(p.table())
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("release packets from %s: %w", p.In.Name, err)
	}
	return nil
}
