// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// role says what runs in a pod. The mesh's own pods are rendered without a command, since that is each driver's.
type role uint8

const (
	roleApp role = iota
	roleZtunnel
	roleControl
)

const (
	systemNamespace = "istio-system"
	imagePrefix     = "ambientlab/"
	controlHost     = "istiod.istio-system.svc"
)

func roleOf(p *corev1.Pod) role {
	if p.Namespace != systemNamespace || len(p.Spec.Containers) == 0 || len(p.Spec.Containers[0].Command) > 0 {
		return roleApp
	}
	switch strings.TrimPrefix(p.Spec.Containers[0].Image, imagePrefix) {
	case "ztunnel":
		return roleZtunnel
	case "istiod":
		return roleControl
	}
	return roleApp
}

// daemon is the name that a driver's callers use; "" for an application.
func (r role) daemon() string {
	switch r {
	case roleZtunnel:
		return lab.DaemonZtunnel
	case roleControl:
		return lab.DaemonControl
	}
	return ""
}

// keyLogPath is the directory of logged TLS secrets, as the mesh's own pods see it.
const keyLogPath = podLabPath + "/tls-keys"

// roleBinds is what a pod sees of the lab besides the binaries.
func (s *site) roleBinds(p *pod) (binds []pause.Bind) {
	switch p.role {
	case roleZtunnel:
		binds = []pause.Bind{
			{Source: s.dir.Node(p.node.name, "run", "ztunnel"), Target: "/var/run/ztunnel"},
			{Source: s.dir.RootCert(), Target: rootCertDir, ReadOnly: true},
		}
	case roleControl:
		binds = []pause.Bind{
			{Source: s.dir.Objects(), Target: podLabPath + "/objects", ReadOnly: true},
			{Source: s.dir.Status(lab.DaemonControl), Target: podLabPath + "/status"},
			{Source: s.dir.CA(), Target: podLabPath + "/ca"},
			{Source: s.dir.JWKS(), Target: podLabPath + "/jwks.json", ReadOnly: true},
			{Source: s.dir.RootCert(), Target: podLabPath + "/root-cert"},
		}
	default:
		return s.volumeBinds(p)
	}
	if s.spec.Debug.TLSKeys {
		binds = append(binds, pause.Bind{Source: s.dir.TLSKeys(), Target: keyLogPath})
	}
	return binds
}

// command is the pod's main process and its environment.
func (s *site) command(p *pod) (argv, env []string) {
	c := &p.object().Spec.Containers[0]
	env = environment(p, c)
	switch p.role {
	case roleZtunnel:
		argv = []string{"ztunnel"}
		env = append(env, s.ztunnelEnv(p)...)
	case roleControl:
		argv = s.controlCommand()
	default:
		return append(append([]string{}, c.Command...), c.Args...), env
	}
	return argv, override(env, s.daemonEnv[p.role.daemon()])
}

// override puts more in the place of variables of the same name: a Go program heeds the first of two.
func override(env, more []string) []string {
	env = slices.DeleteFunc(env, func(old string) bool {
		name, _, _ := strings.Cut(old, "=")
		return slices.ContainsFunc(more, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	})
	return append(env, more...)
}

// ztunnelEnv is what the chart of upstream's ztunnel sets, under the same names.
func (s *site) ztunnelEnv(p *pod) []string {
	const control = "https://" + controlHost + ":15012"
	p.mu.Lock()
	ips := append([]netip.Addr(nil), p.ips...)
	p.mu.Unlock()
	ip := ""
	if len(ips) > 0 {
		ip = ips[0].String()
	}
	env := []string{
		"XDS_ADDRESS=" + control, "CA_ADDRESS=" + control,
		"XDS_ROOT_CA=" + rootCertDir + "/" + rootCertName, "CA_ROOT_CA=" + rootCertDir + "/" + rootCertName,
		"CLUSTER_ID=" + s.cluster.Name, "NETWORK=" + s.cluster.Nodes[p.node.index].Network, "CLUSTER_DOMAIN=" + s.cluster.Domain,
		"POD_NAME=" + p.ref.Name, "POD_NAMESPACE=" + p.ref.Namespace, "NODE_NAME=" + p.node.name,
		"SERVICE_ACCOUNT=" + p.object().Spec.ServiceAccountName, "INSTANCE_IP=" + ip,
		"INPOD_UDS=" + ztunnelSocket, "LOG_FORMAT=json",
	}
	if !s.cluster.IPFamily.Has6() {
		env = append(env, "IPV6_ENABLED=false")
	}
	if s.spec.Debug.TLSKeys {
		env = append(env, "SSLKEYLOGFILE="+keyLogPath+"/ztunnel."+p.node.name+".log")
	}
	return env
}

func (s *site) controlCommand() []string {
	argv := []string{
		"control", "--objects", podLabPath + "/objects", "--ca-dir", podLabPath + "/ca", "--jwks", podLabPath + "/jwks.json",
		"--root-cert-out", podLabPath + "/root-cert/" + rootCertName, "--listen", ":15012",
		"--trust-domain", s.cluster.TrustDomain, "--cluster-id", s.cluster.Name, "--cluster-domain", s.cluster.Domain,
		"--network", s.cluster.Network, "--status-dir", podLabPath + "/status", "--log-format", "json",
	}
	if s.spec.Debug.TLSKeys {
		argv = append(argv, "--key-log", keyLogPath+"/control.log")
	}
	return argv
}

// agentCommand is the node agent's, with paths of its node.
func (s *site) agentCommand(n *node) []string {
	owner := "cni-agent." + n.name
	return []string{
		binPath + "/cni-agent", "--node", n.name, "--objects", labPath + "/objects", "--status-dir", labPath + "/objects/status/" + owner,
		"--netns-dir", labPath + "/nodes/" + n.name + "/netns", "--plugin-socket", pluginSocket, "--log-socket", logSocket, "--zds-socket", ztunnelSocket,
		"--exclude-namespaces", strings.Join(excludedNamespaces, ","),
	}
}

// agentCapabilities are those that the chart of upstream's agent asks for.
var agentCapabilities = []string{"NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE"}

// Ports of readiness checks (reference: ports).
const (
	ztunnelReady = "http://localhost:15021/healthz/ready"
	agentReady   = "http://localhost:8000/readyz"
	controlReady = "http://localhost:8080/ready"
)

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
