// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/ambientlab/ambientlab/topologies/workload"
)

func TestRunUsage(t *testing.T) {
	for args, want := range map[string]int{
		"": 2, "dance": 2, "help": 0, "serve --help": 0, "call --help": 0, "serve --http x": 2, "serve extra": 2, "call": 2,
		"call ftp://x": 2, "call http://127.0.0.1:1": 1,
	} {
		var out, errOut bytes.Buffer
		if got := run(t.Context(), strings.Fields(args), &out, &errOut); got != want {
			t.Errorf("workload %s: exit %d, want %d\n%s", args, got, want, errOut.String())
		}
		if want == 2 && errOut.Len() == 0 {
			t.Errorf("workload %s: no message", args)
		}
	}
}

func TestServeAndCall(t *testing.T) {
	port := freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	exit := make(chan int, 1)
	go func() { exit <- run(ctx, []string{"serve", "--http", port + "@localhost"}, w, io.Discard) }()
	line := make([]byte, 6)
	if _, err := io.ReadFull(r, line); err != nil || string(line) != "ready\n" {
		t.Fatalf("serve printed %q, %v", line, err)
	}
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"call", "--count", "2", "http://127.0.0.1:" + port}, &out, &errOut); code != 0 {
		t.Errorf("call: exit %d: %s", code, errOut.String())
	}
	var res workload.Result
	if err := json.Unmarshal(out.Bytes(), &res); err != nil || res.OK != 2 {
		t.Errorf("result %+v, %v", res, err)
	}
	cancel()
	if code := <-exit; code != 0 {
		t.Errorf("serve: exit %d", code)
	}
}

// freePort is a port that nothing listens on now.
func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
