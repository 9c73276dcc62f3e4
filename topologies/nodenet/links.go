// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// AnnotationLinks on a Kubernetes Node says, as JSON of Links, what the node's links are to look like.
const AnnotationLinks = "nodenet.ambientlab.dev/links"

// Links are what a node's links look like where they are not as the kernel and the underlay have them. The zero value changes nothing.
type Links struct {
	// MTU is that of the links of pods that are made from now on; 0 is the underlay's.
	MTU int `json:"mtu,omitempty"`
	// PlainPackets turns offloads off on the node's link to the underlay and on those of pods that are made from now on, so that
	// packets are as on a wire.
	PlainPackets bool `json:"plainPackets,omitempty"`
	// PathMTU is, by the name of a peer, the largest packet that the path to it takes.
	PathMTU map[string]int `json:"pathMTU,omitempty"`
}

// IsZero reports whether nothing is asked for.
func (l Links) IsZero() bool { return l.MTU == 0 && !l.PlainPackets && len(l.PathMTU) == 0 }

// LinksDone is what the CNI configuration of a node says of the value of AnnotationLinks that it goes by, behind the key "links". It is
// the last that is written for it.
func LinksDone(annotation string) string {
	sum := sha256.Sum256([]byte(annotation))
	return hex.EncodeToString(sum[:8])
}

// leastMTU is what IPv6 needs of a link (RFC 8200 §5), mostMTU the largest IP packet.
const leastMTU, mostMTU = 1280, 65535

// ParseLinks reads the value of AnnotationLinks; "" is the zero value. It reports all that is wrong with it.
func ParseLinks(text string) (Links, error) {
	var l Links
	if text == "" {
		return l, nil
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	err := d.Decode(&l)
	if err == nil && d.More() {
		err = errors.New("more than one JSON value")
	}
	if err != nil {
		return Links{}, fmt.Errorf("annotation %s: %w", AnnotationLinks, err)
	}
	var errs []error
	check := func(path string, mtu int) {
		if mtu < leastMTU || mtu > mostMTU {
			errs = append(errs, fmt.Errorf("annotation %s: %s: %d is not from %d to %d", AnnotationLinks, path, mtu, leastMTU, mostMTU))
		}
	}
	if l.MTU != 0 {
		check("mtu", l.MTU)
	}
	for _, peer := range slices.Sorted(maps.Keys(l.PathMTU)) {
		check("pathMTU."+peer, l.PathMTU[peer])
	}
	if len(errs) > 0 {
		return Links{}, errors.Join(errs...)
	}
	return l, nil
}
