// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/kindconfigs/image"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

func spareOf(nodes int, family topologies.IPFamily) *owned {
	return &owned{cluster: &cluster{shape: shape{Nodes: nodes, IPFamily: family}}}
}

func TestPoolHandsOutTheSmallestThatFits(t *testing.T) {
	var p Pool
	for _, c := range []*owned{spareOf(3, topologies.Dual), spareOf(2, topologies.Dual), spareOf(2, topologies.IPv6)} {
		p.give(c)
	}
	for _, want := range []int{2, 3} {
		if c := p.take(shape{Nodes: 2, IPFamily: topologies.Dual}, ""); c == nil || c.Nodes != want || c.IPFamily != topologies.Dual {
			t.Fatalf("got %+v, want %d nodes of both families", c, want)
		}
	}
	if c := p.take(shape{Nodes: 2, IPFamily: topologies.Dual}, ""); c != nil {
		t.Errorf("got a cluster of %s", c.IPFamily)
	}
	if c := p.take(shape{Nodes: 3, IPFamily: topologies.IPv6}, ""); c != nil {
		t.Errorf("got a cluster of %d nodes for 3", c.Nodes)
	}
}

func TestPoolPrefersTheMeshThatStands(t *testing.T) {
	var p Pool
	for _, topology := range []string{"", "two-nodes", "three-nodes"} {
		c := spareOf(2+len(topology), topologies.Dual)
		c.topology = topology
		p.give(c)
	}
	for _, want := range []string{"two-nodes", "", "three-nodes"} {
		if c := p.take(shape{Nodes: 2, IPFamily: topologies.Dual}, "two-nodes"); c == nil || c.topology != want {
			t.Fatalf("got %+v, want the one of %q", c, want)
		}
	}
}

func TestPoolPrefersTheModeOfKubeProxy(t *testing.T) {
	var p Pool
	for _, mode := range []topologies.KubeProxyMode{topologies.KubeProxyNFTables, "", topologies.KubeProxyNFTables} {
		c := spareOf(2, topologies.Dual)
		c.KubeProxyMode = mode
		p.give(c)
	}
	for _, want := range []topologies.KubeProxyMode{topologies.KubeProxyIPTables, topologies.KubeProxyNFTables} { // one has kind's own
		s := shape{Nodes: 2, IPFamily: topologies.Dual, KubeProxyMode: want}
		if c := p.take(s, ""); c == nil || c.mode() != want {
			t.Errorf("got %+v for %s", c, want)
		}
	}
	if c := p.take(shape{Nodes: 2, IPFamily: topologies.Dual}, ""); c == nil || c.mode() != topologies.KubeProxyNFTables {
		t.Errorf("got %+v, want the one that is left", c)
	}
}

func TestPoolIsBounded(t *testing.T) {
	var p Pool
	for range DefaultMost {
		if err := p.room(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.room(t.Context()); !errors.Is(err, lab.ErrOccupied) {
		t.Errorf("one more than there may be: %v, want ErrOccupied", err)
	}
	p.gone()
	if err := p.room(t.Context()); err != nil {
		t.Errorf("one is gone: %v", err)
	}
}

func TestNodesAreInTheOrderOfTheirNames(t *testing.T) {
	for i, name := range []string{"a-control-plane", "a-worker", "a-worker2", "a-worker3"} {
		if got := nodeRank(name); got != i {
			t.Errorf("%s is number %d, want %d", name, got, i)
		}
	}
}

// TestPoolMakesTheImageAgainAfterAChange: what was made of programs is good for as long as they are the same.
func TestPoolMakesTheImageAgainAfterAChange(t *testing.T) {
	bin := t.TempDir()
	for _, p := range image.Programs {
		if err := os.WriteFile(filepath.Join(bin, p), []byte("no program"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stamp, err := image.Stamp(bin)
	if err != nil {
		t.Fatal(err)
	}
	made := &image.Image{Ref: "made"}
	p := Pool{tools: tools{bin: bin}, built: made, stamp: stamp}
	if _, got, err := p.begun(t.Context(), bin); got != made || err != nil {
		t.Errorf("of the same programs: %v, %v", got, err)
	}
	if err := os.Chtimes(filepath.Join(bin, image.Programs[0]), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, got, err := p.begun(t.Context(), bin); err == nil || !strings.Contains(err.Error(), "is no program") {
		t.Errorf("of a program that has changed: %v, %v", got, err)
	}
}
