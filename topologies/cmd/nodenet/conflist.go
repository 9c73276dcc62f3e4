// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

type object = map[string]any

// conflist is the CNI configuration of a node: a cable for each pod, an address of each of the node's pod subnets, used at once
// (kindconfigs/nodeimage/nodad), and host ports. Where plain packets are asked for the cables are without offloads
// (kindconfigs/nodeimage/plainpackets). Version 0.4.0 is read by every container runtime that there is.
func conflist(subnets []netip.Prefix, mtu int, links asked) ([]byte, error) {
	var ranges [][]object
	var routes []object
	for _, p := range subnets {
		anywhere := "0.0.0.0/0"
		if p.Addr().Is6() {
			anywhere = "::/0"
		}
		ranges = append(ranges, []object{{"subnet": p.String()}})
		routes = append(routes, object{"dst": anywhere})
	}
	plugins := []object{
		{"type": "nodad"},
		{"type": "ptp", "ipMasq": false, "mtu": mtu, "ipam": object{
			"type": "host-local", "dataDir": "/run/cni-ipam-state", "ranges": ranges, "routes": routes,
		}},
		{"type": "portmap", "capabilities": object{"portMappings": true}},
	}
	if links.PlainPackets {
		plugins = append(plugins, object{"type": "plainpackets"})
	}
	list := object{"cniVersion": "0.4.0", "name": "nodenet", "plugins": plugins}
	if links.annotation != "" {
		list["links"] = nodenet.LinksDone(links.annotation)
	}
	b, err := json.MarshalIndent(list, "", "  ")
	return append(b, '\n'), err
}

// configure writes the CNI configuration, once for each content: a mesh's agent may have chained its own plugin into the
// file since, and has it repaired otherwise.
func (a *agent) configure(subnets []netip.Prefix) error {
	link, err := net.InterfaceByName(nodenet.UnderlayLink)
	if err != nil {
		return fmt.Errorf("read MTU of %s: %w", nodenet.UnderlayLink, err)
	}
	text, err := conflist(subnets, cmp.Or(a.links.MTU, link.MTU), a.links)
	if err != nil || bytes.Equal(text, a.written) {
		return err
	}
	if err := replace(a.conf, text); err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	a.written = text
	a.log.Info("CNI configuration written", "file", a.conf)
	return nil
}

// replace writes a file so that a reader sees it whole.
func replace(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".nodenet-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
