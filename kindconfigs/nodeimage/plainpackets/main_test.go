// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// TestAdd: nothing of either end is left to be turned off.
func TestAdd(t *testing.T) {
	node, pod := nstest.New(t), nstest.New(t)
	nstest.Connect(t, nstest.End{NS: node, Name: "veth0"}, nstest.End{NS: pod, Name: "eth0"})
	on, err := nodenet.Offloads(node, "veth0")
	if err != nil || len(on) == 0 {
		t.Fatalf("control: on at first are %v, %v", on, err)
	}
	stdin := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"n","type":"plainpackets","prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"veth0"},{"name":"eth0","sandbox":"/proc/self/fd/%d"}]}}`, pod.Fd())
	nstest.In(t, node, func() error { return add(&skel.CmdArgs{StdinData: []byte(stdin)}) })
	nstest.In(t, node, func() error { return unchanged("veth0") })
	nstest.In(t, pod, func() error { return unchanged("eth0") })
}

// unchanged is an error if an offload was still on.
func unchanged(link string) error {
	if _, err := net.InterfaceByName(link); err != nil {
		return err
	}
	on, err := nodenet.Offloads(nil, link)
	if err == nil && len(on) > 0 {
		err = fmt.Errorf("%s: still on: %v", link, on)
	}
	return err
}

func TestAddRefuses(t *testing.T) {
	for config, want := range map[string]string{
		"{":                      "read the network configuration",
		`{"cniVersion":"0.4.0"}`: "put plainpackets behind",
		`{"cniVersion":"0.4.0","prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"none0"}]}}`:                   "none0",
		`{"cniVersion":"0.4.0","prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"a","sandbox":"/not/here"}]}}`: "/not/here",
	} {
		if err := add(&skel.CmdArgs{StdinData: []byte(config)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
}
