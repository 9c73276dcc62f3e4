// SPDX-License-Identifier: Apache-2.0

package kind

import (
	"context"
	"fmt"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// proxies refuses a mode of kube-proxy for which the nodes' kernel has nothing: kube-proxy would end again and again.
func (t tools) proxies(ctx context.Context, s shape) error {
	if s.KubeProxyMode != topologies.KubeProxyIPVS {
		return nil
	}
	out, err := t.run(ctx, nil, t.docker, "run", "--rm", "--privileged", "--volume=/lib/modules:/lib/modules:ro", "--entrypoint=sh", s.Image, "-c",
		"[ -e /proc/net/ip_vs ] || modprobe -q ip_vs && echo yes || true")
	if err == nil && out != "yes" {
		err = fmt.Errorf("kubeProxyMode ipvs: %w: the nodes' kernel has no IPVS, neither built in nor as the module ip_vs", lab.ErrUnsupported)
	}
	return err
}

// proxyScript changes the mode in the one line of kube-proxy's configuration that says it, and waits until each node has a
// kube-proxy of that mode, which removes the rules of other modes when it starts.
const proxyScript = `set -e
export KUBECONFIG=/etc/kubernetes/admin.conf
k="kubectl --namespace=kube-system"
$k get configmap kube-proxy --output=yaml | sed 's/^    mode: .*/    mode: "%[1]s"/' >/tmp/kube-proxy.yaml
grep -q '^    mode: "%[1]s"' /tmp/kube-proxy.yaml || { echo "the ConfigMap kube-proxy has no mode" >&2; exit 1; }
$k replace --filename=/tmp/kube-proxy.yaml
$k rollout restart daemonset/kube-proxy
$k rollout status daemonset/kube-proxy --timeout=%[2]s
rm /tmp/kube-proxy.yaml
`

// proxy has the nodes' kube-proxies run in that mode.
func (c *cluster) proxy(ctx context.Context, mode topologies.KubeProxyMode, say func(string)) error {
	if c.mode() == mode {
		return nil
	}
	say(fmt.Sprintf("kind cluster %s: from kube-proxy's mode %s to %s", c.name, c.mode(), mode))
	if _, err := c.output(ctx, c.nodes[0], "sh", "-c", fmt.Sprintf(proxyScript, mode, readyBudget)); err != nil {
		return fmt.Errorf("kube-proxy's mode %s: %w", mode, err)
	}
	c.KubeProxyMode = mode
	return c.dir.write(c.about())
}
