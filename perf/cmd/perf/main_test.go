// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
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
	for _, args := range [][]string{nil, {"run"}, {"bench", "x"}, {"bench", "-o", "xml"}, {"bench", "--nonsense"}} {
		var usage usageError
		if _, err := parse(args, io.Discard); !errors.As(err, &usage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
