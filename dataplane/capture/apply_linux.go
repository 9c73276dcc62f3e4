// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// ErrBusy says that someone else changed the namespace's rules at the same moment; trying again helps.
var ErrBusy = errors.New("rules are being changed by someone else")

// Apply makes the namespace's redirection that of p. It writes nothing, and returns false, where that is so already, so that
// counters go on; the rules change in one transaction. The loopback link must be up.
func Apply(ctx context.Context, ns *netns.NS, p Plan) (changed bool, err error) {
	err = inside(ctx, ns, "apply redirection", func(t tables) error {
		d, err := differences(t, p)
		if err != nil || d.empty() {
			return err
		}
		changed = true
		// The route first: a spoofed connection works as soon as rules let it be made.
		if len(d.routing) > 0 {
			if err := writeRouting(d.families); err != nil {
				return err
			}
		}
		if len(d.chains) > 0 {
			return t.write(p.nftChains())
		}
		return nil
	})
	return changed, err
}

// Remove takes away all that any plan may have installed: tables, policy rules and routes. Removing nothing succeeds.
func Remove(ctx context.Context, ns *netns.NS) error {
	return inside(ctx, ns, "remove redirection", func(t tables) error {
		have, err := t.conn.ListTables()
		if err != nil {
			return fmt.Errorf("list tables: %w", err)
		}
		for _, o := range ours() {
			for _, h := range have {
				if h.Name == o.Name && h.Family == o.Family {
					t.conn.DelTable(o)
				}
			}
		}
		if err := t.conn.Flush(); err != nil {
			return fmt.Errorf("delete tables: %w", err)
		}
		return writeRouting(nil)
	})
}

// Diff says in sentences how the namespace differs from p; nothing means that they are equal. Counters do not count.
func Diff(ctx context.Context, ns *netns.NS, p Plan) ([]string, error) {
	var lines []string
	err := inside(ctx, ns, "compare redirection", func(t tables) error {
		d, err := differences(t, p)
		lines = append(lines, d.chains...)
		lines = append(lines, d.routing...)
		return err
	})
	return lines, err
}

// Dump prints what capture has installed in the namespace, with counters: tables as in Plan.Nftables, then policy rules and
// routes, one a line. It is empty where nothing is installed.
func Dump(ctx context.Context, ns *netns.NS) (string, error) {
	var text string
	err := inside(ctx, ns, "read redirection", func(t tables) error {
		chains, err := t.read()
		if err != nil {
			return err
		}
		routing, err := readRouting()
		if err != nil {
			return err
		}
		text = nftText(chains)
		if len(routing) > 0 {
			text += strings.Join(routing, "\n") + "\n"
		}
		return nil
	})
	return text, err
}

// delta is how a namespace differs from a plan.
type delta struct {
	chains, routing []string
	families        []Family // of the plan, as far as the namespace has them
}

func (d delta) empty() bool { return len(d.chains) == 0 && len(d.routing) == 0 }

func differences(t tables, p Plan) (delta, error) {
	have, err := t.read()
	if err != nil {
		return delta{}, err
	}
	routing, err := readRouting()
	if err != nil {
		return delta{}, err
	}
	d := delta{chains: compareChains(p.nftChains(), have)}
	if d.families, err = possible(p.Routed); err != nil {
		return delta{}, err
	}
	var want []string
	for _, f := range d.families {
		want = append(want, routingText(f)...)
	}
	for _, line := range want {
		if !slices.Contains(routing, line) {
			d.routing = append(d.routing, "missing: "+line)
		}
	}
	for _, line := range routing {
		if !slices.Contains(want, line) {
			d.routing = append(d.routing, "unexpected: "+line)
		}
	}
	return d, nil
}

// inside runs fn in the namespace with an open nftables connection.
func inside(ctx context.Context, ns *netns.NS, what string, fn func(tables) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s in %s: %w", what, ns, err)
	}
	err := ns.Do(func() error {
		t, err := openTables()
		if err != nil {
			return err
		}
		defer t.close()
		return fn(t)
	})
	if err == nil {
		return nil
	}
	for _, busy := range []error{unix.EBUSY, unix.EAGAIN, unix.EINTR, unix.EEXIST, netlink.ErrDumpInterrupted} {
		if errors.Is(err, busy) {
			return fmt.Errorf("%s in %s: %w: %w", what, ns, ErrBusy, err)
		}
	}
	return fmt.Errorf("%s in %s: %w", what, ns, err)
}
