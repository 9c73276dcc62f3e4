// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"errors"
	"slices"
	"testing"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

// isOn are the names of those offloads that a link has on.
func isOn(t *testing.T, ns *netns.NS, link string) []string {
	t.Helper()
	on, err := Offloads(ns, link)
	if err != nil {
		t.Fatal(err)
	}
	return on
}

// isSegmented reports whether it has one of segmentation on.
func isSegmented(on []string) bool {
	return slices.ContainsFunc(segmentation, func(o offload) bool { return slices.Contains(on, o.name) })
}

// With offloads a link carries packets of many segments; without them none is larger than its MTU.
func TestPlainPackets(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: a, Name: "plain0"}, nstest.End{NS: b, Name: "plain1"})
	if !isSegmented(isOn(t, a, "plain0")) {
		t.Error("control: no segmentation is left to the device, so there is nothing to turn off")
	}
	for range 2 { // a second time changes nothing
		if err := PlainPackets(t.Context(), a, "plain0"); err != nil {
			t.Fatal(err)
		}
		if on := isOn(t, a, "plain0"); len(on) > 0 {
			t.Errorf("still on: %v", on)
		}
	}
	if err := PlainPackets(t.Context(), a, "none0"); err == nil {
		t.Error("a link that is not there was changed")
	}
}

// What was turned off is on again afterwards.
func TestTurningOffIsUndone(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: a, Name: "plain0"}, nstest.End{NS: b, Name: "plain1"})
	before := isOn(t, a, "plain0")
	restore, err := NoSegmentation(a, "plain0")
	if err != nil {
		t.Fatal(err)
	}
	if on := isOn(t, a, "plain0"); isSegmented(on) || len(on) == 0 {
		t.Errorf("without segmentation: on are %v", on)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if after := isOn(t, a, "plain0"); !slices.Equal(before, after) {
		t.Errorf("on before: %v, after: %v", before, after)
	}
	if err := errors.Join(PlainPackets(t.Context(), a, "plain0"), UseOffloads(t.Context(), a, "plain0")); err != nil {
		t.Fatal(err)
	}
	if after := isOn(t, a, "plain0"); !slices.Equal(before, after) {
		t.Errorf("plain and back: on before: %v, after: %v", before, after)
	}
}
