// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// logged is what a fake agent was sent, as far as upstream's agent reads it.
func logged(t *testing.T, a *fakeAgent) (lines []struct{ Level, Msg, Pod, Error string }) {
	t.Helper()
	var raw []string
	if err := json.Unmarshal([]byte(<-a.asked), &raw); err != nil {
		t.Fatal(err)
	}
	for _, text := range raw {
		lines = append(lines, struct{ Level, Msg, Pod, Error string }{})
		if err := json.Unmarshal([]byte(text), &lines[len(lines)-1]); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	return lines
}

func TestTheAgentGetsWhatIsLogged(t *testing.T) {
	for _, tt := range []struct {
		name, level, pod, says string
		want                   []string // levels
	}{
		{"a pod that waits", "warn", "shop/ghost", "file does not exist", []string{"warn"}},
		{"a pod outside the mesh, told", "debug", "plain/lone", "", []string{"debug"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			agent := newAgent(t)
			agent.path = "/log"
			_, err := call{pod: tt.pod, conf: map[string]any{"objectsDir": objects(t), "logSocket": agent.socket, "logLevel": tt.level}}.add(t)
			if (err != nil) != (tt.says != "") {
				t.Errorf("ADD: %v", err)
			}
			lines := logged(t, agent)
			if len(lines) != len(tt.want) || lines[0].Level != tt.want[0] || lines[0].Pod != tt.pod || lines[0].Msg == "" || !strings.Contains(lines[0].Error, tt.says) {
				t.Errorf("%+v", lines)
			}
		})
	}
}

// An agent that is away, or takes its time, costs the log and nothing else; where nothing is logged nobody is asked.
func TestALogThatNobodyTakes(t *testing.T) {
	hanging := newAgent(t)
	hanging.path, hanging.hang = "/log", true
	for name, conf := range map[string]map[string]any{
		"away":    {"logSocket": "/nowhere", "logLevel": "debug"},
		"hanging": {"logSocket": hanging.socket, "logLevel": "debug"},
		"silent":  {"logSocket": "/nowhere", "logLevel": "error"},
	} {
		conf["objectsDir"] = objects(t)
		out, err := call{pod: "plain/lone", conf: conf, timing: Timing{Tries: 1, Log: 20 * time.Millisecond}}.add(t)
		if err != nil || !strings.Contains(out, "10.0.0.5/24") {
			t.Errorf("%s: printed %q, error %v", name, out, err)
		}
	}
}
