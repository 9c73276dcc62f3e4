// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
)

// Paths inside pods, as on Kubernetes.
const (
	accountDir   = "/var/run/secrets/kubernetes.io/serviceaccount"
	istioToken   = "/var/run/secrets/tokens/istio-token"
	rootCertDir  = "/var/run/secrets/istio"
	rootCertName = "root-cert.pem"
	podLabPath   = "/run/ambientlab" // what the control plane's pod gets of the lab
	podPath      = binPath + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// podSetup is a pod's file tree.
func (s *site) podSetup(p *pod) (pause.Setup, error) {
	files, err := s.tokens(p)
	if err != nil {
		return pause.Setup{}, err
	}
	files = append(files,
		pause.File{Path: accountDir + "/namespace", Content: p.ref.Namespace},
		pause.File{Path: "/etc/hostname", Content: p.ref.Name + "\n"},
		pause.File{Path: "/etc/resolv.conf", Content: s.resolvConf(p.ref.Namespace)},
		s.hostsFile(p.ref.Name, nil),
	)
	sysctls, err := podSysctls(p.object())
	if err != nil {
		return pause.Setup{}, err
	}
	return pause.Setup{
		Hostname: p.ref.Name, Sysctls: sysctls, Files: files,
		Root:  &pause.Root{Staging: s.dir.Pod(p.uid, "root"), Hide: s.hide},
		Binds: append([]pause.Bind{{Source: s.bin, Target: binPath, ReadOnly: true}}, s.roleBinds(p)...),
	}, nil
}

// podSysctls are those of every namespace, and then those that a pod asks for: as on Kubernetes, only what its network
// namespace has for itself.
func podSysctls(obj *corev1.Pod) ([]pause.Sysctl, error) {
	list := slices.Clone(commonSysctls)
	if obj.Spec.SecurityContext == nil {
		return list, nil
	}
	for _, s := range obj.Spec.SecurityContext.Sysctls {
		if !strings.HasPrefix(s.Name, "net.") {
			return nil, fmt.Errorf("spec.securityContext.sysctls: %s is no setting of a network namespace", s.Name)
		}
		list = append(list, pause.Sysctl{Name: s.Name, Value: s.Value})
	}
	return list, nil
}

// hidden are the directories of the host that no pod may see: those of all labs, of which this one may lie elsewhere.
func hidden(dir labdir.Dir, getenv func(string) string) []string {
	own := filepath.Dir(string(dir))
	if own == "/" {
		own = string(dir)
	}
	var hide []string
	for _, d := range append([]string{own}, labdir.Known(getenv)...) {
		if real, err := filepath.EvalSymlinks(d); err == nil {
			d = real
		}
		if !slices.Contains(hide, d) {
			hide = append(hide, d)
		}
	}
	return hide
}

func (s *site) resolvConf(namespace string) string {
	var b strings.Builder
	for _, ip := range s.cluster.DNSAddrs() {
		fmt.Fprintf(&b, "nameserver %s\n", ip)
	}
	d := s.cluster.Domain
	fmt.Fprintf(&b, "search %s.svc.%s svc.%s %s\noptions ndots:5\n", namespace, d, d, d)
	return b.String()
}

func (s *site) hostsFile(name string, ips []netip.Addr) pause.File {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	return pause.File{Path: "/etc/hosts", Content: b.String()}
}

// podTask is the pod's main process.
func (s *site) podTask(p *pod) (*task, error) {
	obj := p.object()
	if len(obj.Spec.Containers) == 0 {
		return nil, fmt.Errorf("spec.containers is empty")
	}
	argv, env := s.command(p)
	if len(argv) == 0 {
		return nil, fmt.Errorf("spec.containers[0].command is empty, and no program of this lab is called %q", obj.Spec.Containers[0].Image)
	}
	bounds, err := containerBounds(&obj.Spec.Containers[0], p.role)
	if err != nil {
		return nil, err
	}
	grace := podGrace
	if g := obj.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = seconds(*g)
	}
	return &task{
		name: p.ref.String(), init: p.handle(), log: s.dir.PodLog(p.ref.Namespace, p.name()), grace: grace,
		start: pause.Start{Argv: argv, Env: env, Dir: "/", Bounds: bounds},
	}, nil
}

// containerBounds are the rights of every process of a pod: Kubernetes' default, changed as its container says. A mesh's
// own pods drop what their charts drop.
func containerBounds(c *corev1.Container, r role) (*child.Bounds, error) {
	base := child.PodCapabilities
	if r != roleApp {
		base = nil
	}
	var add, drop []string
	if sc := c.SecurityContext; sc != nil && sc.Capabilities != nil {
		add, drop = names(sc.Capabilities.Add), names(sc.Capabilities.Drop)
	}
	set, err := child.CapabilitySet(base, add, drop)
	if err != nil {
		return nil, fmt.Errorf("securityContext.capabilities: %w", err)
	}
	return &child.Bounds{Capabilities: set, NoNewPrivs: true}, nil
}

func names(list []corev1.Capability) []string {
	out := make([]string, len(list))
	for i, c := range list {
		out[i] = string(c)
	}
	return out
}

// environment is a container's own, in which fields of the pod are filled in, and what every process needs.
func environment(p *pod, c *corev1.Container) []string {
	env := []string{"PATH=" + podPath, "HOME=/root", "HOSTNAME=" + p.ref.Name, "TERM=xterm"}
	for _, v := range c.Env {
		value := v.Value
		if v.ValueFrom != nil && v.ValueFrom.FieldRef != nil {
			value = field(p, v.ValueFrom.FieldRef.FieldPath)
		}
		env = append(env, v.Name+"="+value)
	}
	return env
}

// field is the downward API.
func field(p *pod, path string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch path {
	case "metadata.name":
		return p.ref.Name
	case "metadata.namespace":
		return p.ref.Namespace
	case "metadata.uid":
		return p.uid
	case "spec.nodeName":
		return p.node.name
	case "spec.serviceAccountName":
		return p.obj.Spec.ServiceAccountName
	case "status.podIP":
		if len(p.ips) > 0 {
			return p.ips[0].String()
		}
	case "status.podIPs":
		return joinAddrs(p.ips)
	}
	return ""
}

func joinAddrs(ips []netip.Addr) string {
	list := make([]string, len(ips))
	for i, ip := range ips {
		list[i] = ip.String()
	}
	return strings.Join(list, ",")
}

// writeAtomic replaces a file in one step, since watchers read it at any time. Of writers at the same time the last wins.
func writeAtomic(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.next")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
