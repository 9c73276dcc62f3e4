// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ambientlab/ambientlab/dataplane/netns/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func TestAdd(t *testing.T) {
	pod := nstest.New(t)
	set := func(want string) {
		nstest.In(t, pod, func() error { return os.WriteFile(acceptDAD, []byte(want), 0) })
	}
	set("1") // the kernel's own
	if err := add(&skel.CmdArgs{Netns: fmt.Sprintf("/proc/self/fd/%d", pod.Fd()), StdinData: []byte(`{"cniVersion":"0.4.0","name":"n","type":"nodad"}`)}); err != nil {
		t.Fatal(err)
	}
	nstest.In(t, pod, func() error {
		now, err := os.ReadFile(acceptDAD)
		if got := strings.TrimSpace(string(now)); err == nil && got != "0" {
			err = fmt.Errorf("accept_dad is %s, want 0", got)
		}
		return err
	})
}

func TestAddWithoutNamespace(t *testing.T) {
	for _, c := range []struct{ config, path, want string }{
		{"{", "/proc/self/ns/net", "read the network configuration"},
		{"{}", "/does/not/exist", "/does/not/exist"},
	} {
		if err := add(&skel.CmdArgs{Netns: c.path, StdinData: []byte(c.config)}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s in %s: %v, want %q", c.config, c.path, err, c.want)
		}
	}
}
