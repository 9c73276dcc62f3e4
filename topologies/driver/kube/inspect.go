// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Inspect implements lab.Driver. It shows what the node's own tools say: ip, nft and ss. A tool that a node lacks leaves its
// part empty.
func (d *Driver) Inspect(ctx context.Context, t lab.Target) (lab.Inspection, error) {
	s, err := d.standing()
	if err != nil {
		return lab.Inspection{}, err
	}
	if p := s.pod(t.Pod); p != nil && (p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed) {
		return lab.Inspection{Links: "none: the pod has ended\n"}, nil
	}
	at, err := s.place(ctx, t)
	if err != nil {
		return lab.Inspection{}, fmt.Errorf("inspect %s: %w", t, err)
	}
	var out, errOut bytes.Buffer
	exit, err := s.hostExec(ctx, at.node, append(at.enter, "sh", "-c", inspectScript), lab.Stdio{Out: &out, Err: &errOut})
	if err == nil && exit != 0 {
		err = fmt.Errorf("exit code %d: %s", exit, strings.TrimSpace(errOut.String()))
	}
	if err == nil && strings.Count(out.String(), divide) != 3 {
		err = errors.New("the node's answer lacks a part")
	}
	if err != nil {
		return lab.Inspection{}, fmt.Errorf("inspect %s: %w", t, err)
	}
	parts := strings.Split(out.String(), divide)
	in := lab.Inspection{Links: parts[0], Routes: parts[1], Rules: parts[2], Sockets: sockets(parts[3])}
	if t.Node != "" {
		in.Refused = refused(in.Rules)
	}
	return in, nil
}

// divide is between the parts of what inspectScript prints.
const divide = "=-= ambientlab =-=\n"

const inspectScript = `has() { command -v $1 >/dev/null; }
divide() { echo '=-= ambientlab =-='; }
has ip && ip -s address
divide
has ip && for v in -4 -6; do ip $v rule | sed 's/^/rule /'; ip $v route show table all; done
divide
has nft && nft list ruleset
divide
has ss && ss -H -n -a -t -u -e
true`

// mapped are IPv4 addresses on sockets of both families, anywhere those that such sockets listen at.
var (
	mapped   = regexp.MustCompile(`\[::ffff:([0-9.]+)\]`)
	anywhere = regexp.MustCompile(` \*:(\d+|\*)`)
)

// sockets are lines of ss with the state first after the protocol, and with addresses as Go writes them.
func sockets(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = mapped.ReplaceAllString(line, "$1")
		b.WriteString(anywhere.ReplaceAllString(line, " [::]:$1"))
	}
	return b.String()
}

// policyTable is where package nodenet/policy keeps its rules.
const policyTable = "table inet ambientlab-networkpolicy "

var (
	chainLine = regexp.MustCompile(`^\s*chain (\S+) \{`)
	dropLine  = regexp.MustCompile(`counter packets (\d+) bytes \d+ drop(?: comment "(.*)")?`)
)

// refused has a line for each rule of a NetworkPolicy that has dropped packets, if the rules are those of nodenet; a CNI
// project's own it cannot tell from others.
func refused(rules string) (out []string) {
	ours, chain := false, ""
	for line := range strings.Lines(rules) {
		if strings.HasPrefix(line, "table ") {
			ours = strings.HasPrefix(line, policyTable)
		}
		if m := chainLine.FindStringSubmatch(line); m != nil {
			chain = m[1]
		}
		if m := dropLine.FindStringSubmatch(line); ours && m != nil && m[1] != "0" {
			out = append(out, fmt.Sprintf("%s: NetworkPolicy dropped %s packets, %s", chain, m[1], m[2]))
		}
	}
	return out
}
