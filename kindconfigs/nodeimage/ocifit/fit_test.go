// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// all is every capability but those named.
func all(but ...string) (set uint64) {
	for i, name := range capabilities {
		if !strings.Contains(strings.Join(but, " ")+" ", name+" ") {
			set |= 1 << i
		}
	}
	return set
}

func TestFit(t *testing.T) {
	poor := host{bounding: all("CAP_SYS_RESOURCE"), oomScore: 0, hard: map[string]uint64{"RLIMIT_NOFILE": 20000}}
	rich := host{bounding: all(), oomScore: 0, hard: poor.hard}
	old := host{bounding: all(newer...), oomScore: 0, hard: poor.hard}
	const privileged = `"CAP_SYS_ADMIN","CAP_SYS_MODULE","CAP_AUDIT_READ"`
	for _, tc := range []struct {
		name     string
		host     host
		process  bool
		in, want string
	}{
		{"what the host lacks goes", poor, false,
			`{"process":{"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"effective":["CAP_SYS_RESOURCE"]}}}`,
			`{"process":{"capabilities":{"bounding":["CAP_CHOWN"],"effective":[]}}}`},
		{"what the host has stays", rich, false,
			`{"process":{"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"]}}}`,
			`{"process":{"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"]}}}`},
		{"one that nobody knows goes", rich, false,
			`{"process":{"capabilities":{"bounding":["CAP_FUTURE"]}}}`, `{"process":{"capabilities":{"bounding":[]}}}`},
		{"privileged means all that exist", rich, false,
			`{"process":{"capabilities":{"bounding":[` + privileged + `]}}}`,
			`{"process":{"capabilities":{"bounding":[` + privileged + `,"CAP_PERFMON","CAP_BPF","CAP_CHECKPOINT_RESTORE"]}}}`},
		{"all that exist here", old, false,
			`{"process":{"capabilities":{"bounding":[` + privileged + `]}}}`, `{"process":{"capabilities":{"bounding":[` + privileged + `]}}}`},
		{"scores and limits are what can be had", poor, false,
			`{"process":{"oomScoreAdj":-999,"rlimits":[{"type":"RLIMIT_NOFILE","hard":18446744073709551615,"soft":1024},{"type":"RLIMIT_CPU","hard":9,"soft":9}]}}`,
			`{"process":{"oomScoreAdj":0,"rlimits":[{"type":"RLIMIT_NOFILE","hard":20000,"soft":1024},{"type":"RLIMIT_CPU","hard":9,"soft":9}]}}`},
		{"with CAP_SYS_RESOURCE all can be had", rich, false,
			`{"process":{"oomScoreAdj":-999,"rlimits":[{"type":"RLIMIT_NOFILE","hard":18446744073709551615,"soft":1024}]}}`,
			`{"process":{"oomScoreAdj":-999,"rlimits":[{"type":"RLIMIT_NOFILE","hard":18446744073709551615,"soft":1024}]}}`},
		{"a process for exec", poor, true, `{"oomScoreAdj":-1,"args":["sh"]}`, `{"oomScoreAdj":0,"args":["sh"]}`},
		{"nothing to fit", poor, false, `{"hooks":{}}`, `{"hooks":{}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := tc.host.fit([]byte(tc.in), tc.process)
			if err != nil {
				t.Fatal(err)
			}
			var want, got any
			if json.Unmarshal([]byte(tc.want), &want) != nil || json.Unmarshal(out, &got) != nil {
				t.Fatalf("no JSON: %s", out)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, err := poor.fit([]byte(`{"process"`), false); err == nil {
		t.Error("half a specification was taken")
	}
}

func TestMissing(t *testing.T) {
	if diff := cmp.Diff([]string{"CAP_SYS_RESOURCE"}, (host{bounding: all("CAP_SYS_RESOURCE")}).missing()); diff != "" {
		t.Error(diff)
	}
	if h, err := thisHost(); err != nil || len(h.hard) != len(limits) {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestSpecOf(t *testing.T) {
	for args, want := range map[string]string{
		"--root /r --log l create --bundle /b --pid-file p id": "/b/config.json",
		"run -b /b id":                       "/b/config.json",
		"create --bundle=/b id":              "/b/config.json",
		"create id":                          "config.json",
		"exec --process /p.json --detach id": "/p.json process",
		"exec -p /p.json id":                 "/p.json process",
		"exec id sh":                         " process",
		"delete --force id":                  "",
		"--version":                          "",
	} {
		file, process := specOf(strings.Fields(args))
		if process {
			file += " process"
		}
		if file != want {
			t.Errorf("runc %s: %q, want %q", args, file, want)
		}
	}
}
