// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"fmt"
	"os"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
)

// external is a host on the underlay, outside cluster and mesh.
type external struct {
	ns   *netns.NS
	init *pause.Handle
}

// startExternal starts the index-th external host: namespaces like a pod's, but no CNI, no token and no node.
func (s *site) startExternal(ctx context.Context, index int) error {
	e := s.spec.External[index]
	if err := s.runExternal(ctx, index, e); err != nil {
		return fmt.Errorf("start external host %s: %w", e.Name, err)
	}
	return nil
}

func (s *site) runExternal(ctx context.Context, index int, e topologies.External) error {
	id := "external." + e.Name
	if err := os.MkdirAll(s.dir.Pod(id, "root"), 0o700); err != nil {
		return err
	}
	init, err := s.launch(id, podNamespaces)
	if err != nil {
		return err
	}
	ns, err := netns.Open(nsPath(init))
	if err != nil {
		return err
	}
	err = init.SetUp(ctx, pause.Setup{
		Hostname: e.Name, Sysctls: commonSysctls, Files: []pause.File{s.hostsFile(e.Name, e.Addresses)},
		Root:  &pause.Root{Staging: s.dir.Pod(id, "root"), Hide: s.hide},
		Binds: []pause.Bind{{Source: s.bin, Target: binPath, ReadOnly: true}},
	})
	if err != nil {
		return err
	}
	if err := s.join(ctx, machine{nth: 1 + len(s.cluster.Nodes) + index, name: e.Name, ns: ns, extra: e.Addresses, mtu: e.MTU}); err != nil {
		return err
	}
	s.mu.Lock()
	s.externals[e.Name] = &external{ns: ns, init: init}
	s.mu.Unlock()
	set, err := child.CapabilitySet(child.PodCapabilities, nil, nil)
	if err != nil {
		return err
	}
	t := &task{
		name: id, init: init, log: s.dir.Log(id), grace: podGrace,
		start: pause.Start{
			Argv: append([]string{topologies.WorkloadBinary}, e.Serve.Args()...), Dir: "/",
			Env:    []string{"PATH=" + podPath, "HOME=/root", "HOSTNAME=" + e.Name, "POD_NAME=" + e.Name, "POD_IP=" + joinAddrs(e.Addresses[:1])},
			Bounds: &child.Bounds{Capabilities: set, NoNewPrivs: true},
		},
	}
	if _, err := t.Start(ctx); err != nil {
		return err
	}
	return await(ctx, t, func() (string, bool) { return "has not printed " + readyLine, t.printed(readyLine) })
}
