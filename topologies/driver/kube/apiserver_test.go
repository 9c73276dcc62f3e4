// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// onNode runs a script of the API server's as its node would, in the place of /etc/kubernetes and without a process to kill.
func onNode(t *testing.T, dir, script string) error {
	t.Helper()
	bin := t.TempDir()
	for name, script := range map[string]string{"pkill": "#!/bin/sh\nexit 1\n", "sleep": "#!/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-c", strings.ReplaceAll(script, "/etc/kubernetes", dir))
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.New(string(out))
	}
	return nil
}

// What Stop takes away comes back, however often either is done, and nothing else is touched.
func TestManifestsArePutAsideAndBack(t *testing.T) {
	dir := t.TempDir()
	manifests := filepath.Join(dir, "manifests")
	all := []string{"etcd.yaml", "kube-apiserver.yaml", "kube-controller-manager.yaml", "kube-scheduler.yaml"}
	if err := os.Mkdir(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := onNode(t, dir, putAside); err == nil || !strings.Contains(err.Error(), "no static pod kube-apiserver") {
		t.Errorf("a node without an API server: %v", err)
	}
	for _, name := range all {
		if err := os.WriteFile(filepath.Join(manifests, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		script string
		want   []string
	}{{putBack, all}, {putAside, all[:1]}, {putAside, all[:1]}, {putBack, all}, {putBack, all}, {putAside, all[:1]}, {putBack, all}} {
		if err := onNode(t, dir, step.script); err != nil {
			t.Fatal(err)
		}
		var have []string
		entries, err := os.ReadDir(manifests)
		for _, e := range entries {
			have = append(have, e.Name())
		}
		if err != nil || !slices.Equal(have, step.want) {
			t.Errorf("%v, %v, want %v", have, err, step.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAnAPIServerIsOfOneNode(t *testing.T) {
	for _, nodes := range [][]string{nil, {"a", "b"}} {
		if why := (&stand{controlPlane: nodes}).apiServerMissing(); !strings.Contains(why, labelControlPlane) {
			t.Errorf("%v: %q", nodes, why)
		}
	}
	if why := (&stand{controlPlane: []string{"a"}}).apiServerMissing(); why != "" {
		t.Error(why)
	}
	if err := New(Options{}).Daemon("", lab.DaemonAPIServer).Stop(t.Context()); !errors.Is(err, errNoLab) {
		t.Errorf("without a lab: %v", err)
	}
}

// writtenDown is a Host that runs nothing.
type writtenDown struct{ node, argv string }

func (w *writtenDown) Exec(_ context.Context, node string, argv []string, _ lab.Stdio) (int, error) {
	w.node, w.argv = node, strings.Join(argv, " ")
	return 7, nil
}

func TestCommandsByNode(t *testing.T) {
	host := &writtenDown{}
	pod := &corev1.Pod{}
	pod.Spec.NodeName, pod.Spec.Containers = "n", []corev1.Container{{Name: "app"}}
	if _, err := execByNode(t.Context(), host, pod, []string{"true"}, lab.Stdio{}); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("a pod that has not started: %v", err)
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "app", ContainerID: "containerd://abc", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
	exit, err := execByNode(t.Context(), host, pod, []string{"workload", "look", "/"}, lab.Stdio{})
	if err != nil || exit != 7 || host.node != "n" || !strings.HasSuffix(host.argv, " abc workload look /") || !strings.HasPrefix(host.argv, "ctr ") {
		t.Errorf("%d, %v, on %s: %s", exit, err, host.node, host.argv)
	}
}

func TestAClustersKubeProxyIsAsItIs(t *testing.T) {
	spec := func(mode topologies.KubeProxyMode) *topologies.Spec {
		return &topologies.Spec{Clusters: []topologies.Cluster{{KubeProxyMode: mode}}}
	}
	known := Options{KubeProxyMode: topologies.KubeProxyNFTables}
	for _, tt := range []struct {
		o    Options
		mode topologies.KubeProxyMode
		ok   bool
	}{
		{Options{}, "", true}, {known, "", true}, {known, topologies.KubeProxyNFTables, true},
		{known, topologies.KubeProxyIPTables, false}, {Options{}, topologies.KubeProxyIPTables, false},
	} {
		if err := tt.o.proxies(spec(tt.mode)); (err == nil) != tt.ok || err != nil && !errors.Is(err, lab.ErrUnsupported) {
			t.Errorf("%q where it is %q: %v", tt.mode, tt.o.KubeProxyMode, err)
		}
	}
}
