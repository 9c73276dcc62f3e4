// SPDX-License-Identifier: Apache-2.0

package topologies

import (
	"fmt"
	"strconv"
	"strings"
)

func itoa(i int) string { return strconv.Itoa(i) }

// ParsePort reads "8080", "8080@any", "8080@pod" or "8080@localhost".
func ParsePort(s string) (Port, error) {
	num, bind, has := strings.Cut(s, "@")
	n, err := strconv.ParseUint(num, 10, 16)
	if err != nil || n == 0 {
		return Port{}, fmt.Errorf("port %q: want a number from 1 to 65535, or number@bind", s)
	}
	p := Port{Number: uint16(n), Bind: BindAny}
	if !has {
		return p, nil
	}
	switch p.Bind = Bind(bind); p.Bind {
	case BindAny, BindPod, BindLocalhost:
		return p, nil
	}
	return Port{}, fmt.Errorf("port %q: bind %q is not any, pod or localhost", s, bind)
}
