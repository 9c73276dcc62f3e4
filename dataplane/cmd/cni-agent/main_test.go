// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	cluster := []string{"--node", "n", "--in-cluster"}
	for _, tt := range []struct {
		args  []string
		usage bool
		says  []string
	}{
		{nil, true, []string{"--node is", "--objects is", "--status-dir is", "--netns-dir is"}},
		{[]string{"--what"}, true, []string{"flag provided but not defined"}},
		{append(cluster, "--objects", "/o"), true, []string{"exclude each other"}},
		{append(cluster, "--netns-dir", "/n"), true, []string{"--netns-dir is for --objects"}},
		{append(cluster, "--daemonset", ""), true, []string{"--daemonset are required"}},
		{append(cluster, "--probe-snat-ip", "fd00::1", "--probe-snat-ipv6", "::ffff:10.0.0.1"), true, []string{`"fd00::1" is no IPv4`, `"::ffff:10.0.0.1" is no IPv6`}},
		{append(cluster, "more"), true, []string{`"more"`}},
		{[]string{"-h"}, false, []string{"Usage of cni-agent", "/host/opt/cni/bin", "SYS_PTRACE"}},
	} {
		var stderr bytes.Buffer
		err := run(t.Context(), tt.args, &stderr)
		if errors.Is(err, errUsage) != tt.usage || (!tt.usage && err != nil) {
			t.Errorf("%q: %v", tt.args, err)
		}
		for _, s := range tt.says {
			if !strings.Contains(stderr.String(), s) {
				t.Errorf("%q does not say %q:\n%s", tt.args, s, stderr.String())
			}
		}
	}
}

func flags(t *testing.T, more ...string) []string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"objects", "netns"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return append([]string{
		"--node", "n", "--objects", dir + "/objects", "--status-dir", dir + "/objects/status/cni-agent.n", "--netns-dir", dir + "/netns",
		"--plugin-socket", dir + "/p", "--log-socket", dir + "/l", "--zds-socket", dir + "/z", "--ready", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--admin", "",
	}, more...)
}

func TestRefusesBadFlags(t *testing.T) {
	for _, more := range [][]string{{"--log-level", "loud"}, {"--log-format", "xml"}, {"--ready", "nowhere:x"}} {
		if err := run(t.Context(), flags(t, more...), io.Discard); err == nil {
			t.Errorf("%q were taken", more)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, flags(t), io.Discard) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whatever variable the code reads, --help names.
func TestHelpNamesEveryVariable(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, &out); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`\b(?:env|os\.Getenv|os\.LookupEnv)\("([A-Z][A-Z0-9_]+)"`)
	found := 0
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllSubmatch(src, -1) {
			found++
			if n := bytes.Count(out.Bytes(), m[1]); n < 2 {
				t.Errorf("--help names %s %d times, in its flag and in its list it should be", m[1], n)
			}
		}
	}
	if found < 8 {
		t.Errorf("only %d variables found in the code: the pattern no longer fits", found)
	}
}
