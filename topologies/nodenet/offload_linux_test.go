// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

// isOn are the names of those features that a link has on.
func isOn(t *testing.T, ns *netns.NS, link string, features []offload) (names []string) {
	t.Helper()
	nstest.In(t, ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, o := range features {
			if value, err := ethtool(fd, link, o.get, 0); err == nil && value != 0 {
				names = append(names, o.name)
			}
		}
		return nil
	})
	return names
}

// With offloads a link carries packets of many segments; without them none is larger than its MTU.
func TestPlainPackets(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: a, Name: "plain0"}, nstest.End{NS: b, Name: "plain1"})
	if on := isOn(t, a, "plain0", segmentation); len(on) == 0 {
		t.Error("control: no segmentation is left to the device, so there is nothing to turn off")
	}
	for range 2 { // a second time changes nothing
		if err := PlainPackets(t.Context(), a, "plain0"); err != nil {
			t.Fatal(err)
		}
		if on := isOn(t, a, "plain0", offloads); len(on) > 0 {
			t.Errorf("still on: %v", on)
		}
	}
	if err := PlainPackets(t.Context(), a, "none0"); err == nil {
		t.Error("a link that is not there was changed")
	}
}

// What was turned off for a while is on again afterwards.
func TestNoSegmentationIsUndone(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: a, Name: "plain0"}, nstest.End{NS: b, Name: "plain1"})
	before := isOn(t, a, "plain0", offloads)
	restore, err := NoSegmentation(a, "plain0")
	if err != nil {
		t.Fatal(err)
	}
	if on := isOn(t, a, "plain0", segmentation); len(on) > 0 {
		t.Errorf("still on: %v", on)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if after := isOn(t, a, "plain0", offloads); !slices.Equal(before, after) {
		t.Errorf("on before: %v, after: %v", before, after)
	}
}
