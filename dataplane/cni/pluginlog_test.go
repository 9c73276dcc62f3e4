// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
	"github.com/ambientlab/ambientlab/dataplane/cni/plugin"
)

// logServer is an agent's log, and its socket.
func logServer(t *testing.T) (socket string, log func() string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "log.sock")
	l, err := ListenPlugin(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServePluginLog(ctx, l, slog.New(slog.NewTextHandler(&out, nil))) }()
	return socket, func() string {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		return out.String()
	}
}

func postLog(t *testing.T, socket, body string) int {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	res, err := client.Post("http://agent"+ambient.LogPath, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

func TestPluginsAreHeard(t *testing.T) {
	socket, log := logServer(t)
	for body, status := range map[string]int{
		`["{\"level\":\"error\",\"time\":\"t\",\"msg\":\"first\",\"pod\":\"shop/web\"}","{\"level\":\"debug\",\"msg\":\"too quiet\"}"]`: 200,
		`["{\"level\":\"loud\",\"msg\":\"second\",\"n\":2}","{{"]`:                                                                      200,
		`{"msg":"no array"}`: 400,
	} {
		if got := postLog(t, socket, body); got != status {
			t.Errorf("%s: status %d, want %d", body, got, status)
		}
	}
	text := log()
	for _, want := range []string{"level=ERROR msg=first from=plugin pod=shop/web\n", "level=WARN msg=second from=plugin n=2\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "quiet") || strings.Contains(text, "array") {
		t.Errorf("too much:\n%s", text)
	}
}

// What the plugin itself sends, of a pod that nobody knows.
func TestThePluginIsHeard(t *testing.T) {
	socket, log := logServer(t)
	var out, errOut bytes.Buffer
	p := plugin.Plugin{Stdout: &out, Stderr: &errOut, Timing: plugin.Timing{Tries: 1}}
	err := p.Funcs(t.Context()).Add(&skel.CmdArgs{
		ContainerID: "c", Netns: "/proc/self/ns/net", IfName: "eth0", Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=ghost",
		StdinData: []byte(`{"cniVersion":"1.1.0","name":"net","type":"ambient-cni","objectsDir":"` + t.TempDir() + `","logSocket":"` + socket + `",
			"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.5/24"}]}}`),
	})
	if err == nil {
		t.Error("a pod that nobody knows was let pass")
	}
	if text := log(); !strings.Contains(text, "pod=shop/ghost") || !strings.Contains(text, "level=WARN") {
		t.Errorf("the agent's log:\n%s", text)
	}
}
