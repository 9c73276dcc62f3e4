// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

const (
	podInterface = "eth0"
	cniVersion   = "1.1.0"
	networkName  = "ambientlab"

	pluginSocket  = "/var/run/istio-cni/pluginevent.sock"
	logSocket     = "/var/run/istio-cni/log.sock"
	ztunnelSocket = "/var/run/ztunnel/ztunnel.sock"
)

// networkConfig is a node's chain of plugins: ptp with host-local addresses, then ours. Paths are the node's.
func (s *site) networkConfig(n *node) ([]byte, error) {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, subnet := range n.subnets {
		ranges = append(ranges, []object{{"subnet": subnet.String()}})
		everywhere := "0.0.0.0/0"
		if subnet.Addr().Is6() {
			everywhere = "::/0"
		}
		routes = append(routes, object{"dst": everywhere})
	}
	return json.MarshalIndent(object{
		"cniVersion": cniVersion, "name": networkName,
		"plugins": []object{
			{
				"type": "ptp", "ipMasq": false, "mtu": s.cluster.Nodes[n.index].MTU, "capabilities": object{"ips": true},
				"ipam": object{"type": "host-local", "dataDir": filepath.Join(labPath, "nodes", n.name, "ipam"), "ranges": ranges, "routes": routes},
			},
			{
				"type": "ambient-cni", "objectsDir": filepath.Join(labPath, "objects"), "pluginSocket": pluginSocket, "logSocket": logSocket,
				"logLevel": "info", "excludeNamespaces": excludedNamespaces,
			},
		},
	}, "", "  ")
}

// cniCall prepares libcni for one pod.
func (s *site) cniCall(p *pod) (*libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	conf, err := s.networkConfig(p.node)
	if err != nil {
		return nil, nil, nil, err
	}
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return nil, nil, nil, err
	}
	plugins := &pluginExec{node: p.node.init, bin: s.bin}
	path := []string{filepath.Join(binPath, "cni"), binPath}
	cni := libcni.NewCNIConfigWithCacheDir(path, s.dir.Node(p.node.name, "cni-cache"), plugins)
	rt := &libcni.RuntimeConf{
		ContainerID: p.uid, NetNS: nsPath(p.handle()), IfName: podInterface,
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.ref.Namespace}, {"K8S_POD_NAME", p.ref.Name}, {"K8S_POD_UID", p.uid},
			{"K8S_POD_INFRA_CONTAINER_ID", p.uid},
		},
	}
	if ips := p.object().Annotations[lab.AnnotationIPs]; ips != "" {
		rt.CapabilityArgs = map[string]any{"ips": strings.Split(ips, ",")}
	}
	return cni, list, rt, nil
}

// cniAdd gives a pod its network and returns its addresses, in the order of the node's ranges.
func (s *site) cniAdd(ctx context.Context, p *pod) ([]netip.Addr, error) {
	cni, list, rt, err := s.cniCall(p)
	if err != nil {
		return nil, fmt.Errorf("CNI ADD: %w", err)
	}
	result, err := cni.AddNetworkList(ctx, list, rt)
	if err != nil {
		return nil, fmt.Errorf("CNI ADD: %w", err)
	}
	res, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("CNI ADD: %w", err)
	}
	var ips []netip.Addr
	for _, ip := range res.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ips = append(ips, a.Unmap())
		}
	}
	return ips, s.plainPackets(ctx, p, res)
}

// plainPackets turns offloads off at both ends of a pod's link, if its node has it so.
func (s *site) plainPackets(ctx context.Context, p *pod, res *types100.Result) error {
	if !s.cluster.Nodes[p.node.index].PlainPackets {
		return nil
	}
	for _, intf := range res.Interfaces {
		ns := p.ns
		if intf.Sandbox == "" {
			ns = p.node.ns
		}
		if err := nodenet.PlainPackets(ctx, ns, intf.Name); err != nil {
			return err
		}
	}
	return nil
}

// cniDel takes a pod's network away, as far as it has one.
func (s *site) cniDel(ctx context.Context, p *pod) error {
	cni, list, rt, err := s.cniCall(p)
	if err == nil {
		err = cni.DelNetworkList(ctx, list, rt)
	}
	if err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return nil
}

// pluginExec runs plugins in a node's namespaces: its init forks them there, for a thread of the holder that entered a
// node would have to be thrown away after each.
type pluginExec struct {
	version.PluginDecoder
	node *pause.Handle
	bin  string // as the holder sees it
}

// FindInPath looks where the holder sees the plugins, and answers where the node does.
func (e *pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	for _, dir := range paths {
		rel, err := filepath.Rel(binPath, dir)
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(e.bin, rel, plugin)); err == nil {
			return filepath.Join(dir, plugin), nil
		}
	}
	return "", fmt.Errorf("find plugin %s in %s: %w: run `make build`", plugin, e.bin, os.ErrNotExist)
}

// ExecPlugin runs one plugin.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	code, err := e.run(ctx, path, environ, bytes.NewReader(stdin), &stdout, &stderr)
	if err != nil {
		return nil, fmt.Errorf("run plugin %s: %w", filepath.Base(path), err)
	}
	if code == 0 {
		return stdout.Bytes(), nil
	}
	var said types.Error
	if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		return nil, fmt.Errorf("plugin %s: %w", filepath.Base(path), &said)
	}
	return nil, fmt.Errorf("plugin %s: exit code %d: %s%s", filepath.Base(path), code, bytes.TrimSpace(stdout.Bytes()), bytes.TrimSpace(stderr.Bytes()))
}

func (e *pluginExec) run(ctx context.Context, path string, env []string, in io.Reader, out, errOut io.Writer) (int, error) {
	var pipes pipeSet
	defer pipes.close()
	stdin, stdout, stderr := pipes.reader(in), pipes.writer(out), pipes.writer(errOut)
	if pipes.err != nil {
		return 0, pipes.err
	}
	p, err := e.node.Start(ctx, pause.Start{Argv: []string{path}, Env: env, Dir: "/"}, stdin, stdout, stderr)
	pipes.closeTheirs()
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.SignalGroup(context.WithoutCancel(ctx), syscall.SIGKILL) })
	defer stop()
	code := p.ExitCode()
	pipes.copying.Wait()
	return code, ctx.Err()
}

// pipeSet connects the streams of one process with readers and writers of this one.
type pipeSet struct {
	ours, theirs []*os.File
	copying      sync.WaitGroup
	err          error
}

func (s *pipeSet) pipe() (r, w *os.File) {
	r, w, err := os.Pipe()
	if err != nil {
		s.err = err
		return nil, nil
	}
	return r, w
}

func (s *pipeSet) reader(from io.Reader) *os.File {
	r, w := s.pipe()
	if s.err != nil {
		return nil
	}
	s.theirs = append(s.theirs, r)
	s.copying.Go(func() {
		_, _ = io.Copy(w, from)
		w.Close()
	})
	return r
}

func (s *pipeSet) writer(to io.Writer) *os.File {
	r, w := s.pipe()
	if s.err != nil {
		return nil
	}
	s.theirs, s.ours = append(s.theirs, w), append(s.ours, r)
	s.copying.Go(func() { _, _ = io.Copy(to, r) })
	return w
}

func (s *pipeSet) closeTheirs() {
	for _, f := range s.theirs {
		f.Close()
	}
	s.theirs = nil
}

func (s *pipeSet) close() {
	s.closeTheirs()
	s.copying.Wait()
	for _, f := range s.ours {
		f.Close()
	}
}
