// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command nodad is a CNI plugin that comes first in a chain and has the interfaces that follow in the pod's namespace use their
// IPv6 addresses at once, without Duplicate Address Detection (RFC 4862, section 5.4). At the end of a cable to its node, with an
// address that IPAM gave to nobody else, there is no duplicate to detect, and plugins wait for it for up to two seconds.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// acceptDAD is what interfaces begin with that are made in a network namespace; "0" is no detection.
const acceptDAD = "/proc/sys/net/ipv6/conf/default/accept_dad"

func main() {
	nothing := func(*skel.CmdArgs) error { return nil }
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: nothing, Del: nothing}, version.All, "nodad has interfaces use IPv6 addresses at once")
}

// add answers with an empty result: the next plugin's replaces it.
func add(args *skel.CmdArgs) error {
	var conf types.NetConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("read the network configuration: %w", err)
	}
	if err := noDAD(args.Netns); err != nil {
		return err
	}
	return types.PrintResult(&types100.Result{CNIVersion: types100.ImplementedSpecVersion}, conf.CNIVersion)
}

func noDAD(path string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		err := os.WriteFile(acceptDAD, []byte("0"), 0)
		if errors.Is(err, fs.ErrNotExist) { // the kernel has no IPv6
			return nil
		}
		return err
	})
}
