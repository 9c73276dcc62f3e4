// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseLinks(t *testing.T) {
	want := Links{MTU: 9000, PlainPackets: true, PathMTU: map[string]int{"worker": 1400}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]Links{"": {}, "{}": {}, string(text): want} {
		got, err := ParseLinks(in)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", in, err, diff)
		}
	}
}

func TestParseLinksTellsAllThatIsWrong(t *testing.T) {
	for in, want := range map[string][]string{
		"{":              {"unexpected EOF"},
		`{"MTTU": 1500}`: {"MTTU"},
		`{} {}`:          {"more than one"},
		`{"mtu": 68, "pathMTU": {"b": 1400, "a": 70000, "c": 0}}`: {"mtu: 68 is not from 1280 to 65535", "pathMTU.a: 70000", "pathMTU.c: 0"},
	} {
		l, err := ParseLinks(in)
		if diff := cmp.Diff(Links{}, l); diff != "" || err == nil {
			t.Errorf("%s: %v\n%s", in, err, diff)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) || !strings.Contains(err.Error(), AnnotationLinks) {
				t.Errorf("%s: %v, want %q of %s", in, err, w, AnnotationLinks)
			}
		}
	}
}
