// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	o, err := parse([]string{"bench", "--quick", "--repeats", "7", "--cases", "rate,max"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.Repeats != 7 || o.Duration >= time.Second || len(o.Cases) != 2 || !o.Small {
		t.Errorf("%+v", o)
	}
	for _, args := range [][]string{{"--help"}, {"bench", "-h"}} {
		var out, other strings.Builder
		if err := run(t.Context(), args, &out, &other); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "-repeats") || other.Len() > 0 {
			t.Errorf("%v: %v; %q on stderr", args, err, other.String())
		}
	}
	for _, args := range [][]string{nil, {"run"}, {"bench", "x"}, {"bench", "-o", "xml"}, {"bench", "--nonsense"}} {
		var usage usageError
		if _, err := parse(args, io.Discard); !errors.As(err, &usage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
