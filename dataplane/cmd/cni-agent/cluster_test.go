// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/source/kube/kubetest"
)

const budget = 30 * time.Second

// The same command, an API server in the place of the directory: ready, it takes the taint away, and it ends with its context
// although the server does not answer any more.
func TestRunOnAnAPIServer(t *testing.T) {
	kubetest.Each(t, func(t *testing.T, k *kubetest.Server) {
		k.Apply(t, "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\nspec: {taints: [{key: cni.istio.io/not-ready, effect: NoSchedule}, {key: mine, effect: NoSchedule}]}\n")
		dir := t.TempDir()
		if err := os.Symlink("/proc/self", filepath.Join(dir, "1")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		args := []string{
			"--node", "node1", "--kubeconfig", k.Kubeconfig, "--host-proc", dir, "--install=false", "--probe-snat=false",
			"--plugin-socket", dir + "/p", "--log-socket", dir + "/l", "--zds-socket", dir + "/z", "--ready", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--admin", "",
		}
		go func() { done <- run(ctx, args, io.Discard) }()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		late := time.After(budget)
		for strings.Contains(fmt.Sprint(k.Get(t, "Node", "", "node1")["spec"]), "istio") {
			select {
			case err := <-done:
				t.Fatalf("ended: %v", err)
			case <-late:
				t.Fatal("the taint is still there")
			case <-tick.C:
			}
		}
		if spec := fmt.Sprint(k.Get(t, "Node", "", "node1")["spec"]); !strings.Contains(spec, "mine") {
			t.Error(spec)
		}
		k.Stop(t)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
