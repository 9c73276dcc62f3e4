// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command plainpackets is a CNI plugin that comes behind those that make a pod's interfaces and turns offloads off at both ends of
// each, so that packets on them are no larger than their MTU and have their checksums, as on a wire.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

func main() {
	nothing := func(*skel.CmdArgs) error { return nil }
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: nothing, Del: nothing}, version.All, "plainpackets turns offloads of pods' interfaces off")
}

// add answers with the result of the plugins before it.
func add(args *skel.CmdArgs) error {
	var conf types.NetConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("read the network configuration: %w", err)
	}
	if err := version.ParsePrevResult(&conf); err != nil {
		return fmt.Errorf("read the network configuration: %w", err)
	}
	if conf.PrevResult == nil {
		return errors.New("there is no prevResult: put plainpackets behind the plugin that makes interfaces")
	}
	made, err := types100.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return fmt.Errorf("read prevResult: %w", err)
	}
	for _, i := range made.Interfaces {
		if err := plain(i); err != nil {
			return err
		}
	}
	return types.PrintResult(conf.PrevResult, conf.CNIVersion)
}

// plain is one end's; a plugin runs where those ends are that are in no sandbox.
func plain(i *types100.Interface) error {
	var ns *netns.NS
	if i.Sandbox != "" {
		var err error
		if ns, err = netns.Open(i.Sandbox); err != nil {
			return err
		}
		defer ns.Close()
	}
	return nodenet.PlainPackets(context.Background(), ns, i.Name)
}
