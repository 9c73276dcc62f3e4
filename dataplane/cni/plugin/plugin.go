// SPDX-License-Identifier: Apache-2.0

// Package plugin is the chained CNI plugin: it keeps a mesh pod from starting until the node's agent has enrolled it, and
// lets every other pod pass. It changes nothing itself; its result is the previous plugin's. When it cannot know whether a
// pod is in the mesh, or the agent does not answer, ADD fails and the runtime tries again: a pod stalls rather than escapes.
// It reads one pod and one namespace, from a directory or from the API server, without client-go: it starts for every pod.
// Sources: CNI specification 1.1.0; reference, "CNI plugin".
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
)

// Versions are the CNI specifications that the plugin speaks.
var Versions = version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

const defaultSocket = "/var/run/istio-cni/pluginevent.sock"

// Conf is the plugin's part of the network configuration.
type Conf struct {
	types.NetConf
	ObjectsDir        string   `json:"objectsDir"` // where pods and namespaces are read, or
	Kubeconfig        string   `json:"kubeconfig"` // the API server's
	PluginSocket      string   `json:"pluginSocket"`
	LogSocket         string   `json:"logSocket"` // where the agent takes what is logged; "": nowhere
	LogLevel          string   `json:"logLevel"`
	ExcludeNamespaces []string `json:"excludeNamespaces"`
	// AgentPods is "namespace/prefix" of the agent's own pods, which pass unseen: without an agent there is nobody to ask, and
	// the token in the kubeconfig has run out. "" exempts none.
	AgentPods string `json:"agentPods"`
}

// podArgs are the runtime's, in CNI_ARGS.
type podArgs struct {
	types.CommonArgs
	//nolint:staticcheck // ST1003: CNI's argument names are found by reflection
	K8S_POD_NAME, K8S_POD_NAMESPACE, K8S_POD_UID, K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
}

// Timing is how long the plugin waits; the zero value means the defaults.
type Timing struct {
	Tries    int           // look-ups of the pod: 30
	Interval time.Duration // between two of them: 1 s
	Agent    time.Duration // for the agent's answer: 5 s
	Log      time.Duration // for the agent to take what was logged: 1 s
}

func (t Timing) withDefaults() Timing {
	if t.Tries == 0 {
		t.Tries = 30
	}
	if t.Interval == 0 {
		t.Interval = time.Second
	}
	if t.Agent == 0 {
		t.Agent = 5 * time.Second
	}
	if t.Log == 0 {
		t.Log = time.Second
	}
	return t
}

// Plugin is one run of it.
type Plugin struct {
	Stdout, Stderr io.Writer
	Timing         Timing
}

// Funcs are the plugin's commands. DEL, CHECK and GC have nothing to do: the agent sees pods go.
func (p *Plugin) Funcs(ctx context.Context) skel.CNIFuncs {
	nothing := func(*skel.CmdArgs) error { return nil }
	return skel.CNIFuncs{
		Add:    func(a *skel.CmdArgs) error { return p.add(ctx, a) },
		Status: p.status,
		Del:    nothing, Check: nothing, GC: nothing,
	}
}

func (p *Plugin) add(ctx context.Context, a *skel.CmdArgs) error {
	conf, prev, err := parse(a.StdinData)
	if err != nil {
		return err
	}
	var pod podArgs
	if err := types.LoadArgs(a.Args, &pod); err != nil {
		return fmt.Errorf("read CNI_ARGS: %w", err)
	}
	journal := conf.journal(p.Stderr)
	defer journal.send(ctx, p.Timing.withDefaults())
	log := journal.With("pod", string(pod.K8S_POD_NAMESPACE+"/"+pod.K8S_POD_NAME), "container", a.ContainerID)
	if err := p.enrol(ctx, log, a, conf, pod, prev); err != nil {
		log.Warn("the pod has to wait", "error", err)
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("ambient-cni: pod %s/%s: %v", pod.K8S_POD_NAMESPACE, pod.K8S_POD_NAME, err), "")
	}
	out, err := prev.GetAsVersion(conf.CNIVersion)
	if err != nil {
		return fmt.Errorf("convert prevResult to version %s: %w", conf.CNIVersion, err)
	}
	return out.PrintTo(p.Stdout)
}

func (p *Plugin) enrol(ctx context.Context, log *slog.Logger, a *skel.CmdArgs, conf *Conf, args podArgs, prev types.Result) error {
	namespace, name := string(args.K8S_POD_NAMESPACE), string(args.K8S_POD_NAME)
	if name == "" {
		log.Debug("not a pod of Kubernetes, let pass")
		return nil
	}
	if slices.Contains(conf.ExcludeNamespaces, namespace) {
		log.Debug("let pass", "why", "its namespace is excluded")
		return nil
	}
	if conf.AgentPods != "" && strings.HasPrefix(namespace+"/"+name, conf.AgentPods) {
		log.Debug("let pass", "why", "it is the agent")
		return nil
	}
	objects, err := conf.reader()
	if err != nil {
		return err
	}
	t := p.Timing.withDefaults()
	pod, ns, err := lookUp(ctx, objects, namespace, name, t)
	if err != nil {
		return err
	}
	verdict := ambient.Decide(pod.ambient(), ns.Metadata.Labels, conf.ExcludeNamespaces)
	if !verdict.Enrol {
		log.Debug("let pass", "why", verdict.Why)
		return nil
	}
	req, err := request(a, args, prev)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, t.Agent)
	defer cancel()
	start := time.Now()
	if err := ask(ctx, conf.PluginSocket, req); err != nil {
		return err
	}
	log.Info("enrolled", "why", verdict.Why, "took", time.Since(start))
	return nil
}

// status answers whether an ADD could succeed for a pod outside the mesh: an agent that is away must not make the whole
// node unusable.
func (p *Plugin) status(a *skel.CmdArgs) error {
	conf := &Conf{}
	err := json.Unmarshal(a.StdinData, conf)
	if err == nil {
		_, err = conf.reader()
	}
	if err == nil && conf.ObjectsDir != "" {
		_, err = os.Stat(conf.ObjectsDir)
	}
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "ambient-cni: "+err.Error(), "")
	}
	return nil
}

func parse(stdin []byte) (*Conf, types.Result, error) {
	conf := &Conf{PluginSocket: defaultSocket}
	if err := json.Unmarshal(stdin, conf); err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "read network configuration: "+err.Error(), "")
	}
	if err := version.ParsePrevResult(&conf.NetConf); err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "read prevResult: "+err.Error(), "")
	}
	if conf.PrevResult == nil {
		return nil, nil, types.NewError(types.ErrInvalidNetworkConfig, "ambient-cni must come after the plugin that makes the interface", "prevResult is missing")
	}
	return conf, conf.PrevResult, nil
}

func (c *Conf) level() slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return slog.LevelWarn
	}
	return l
}

func (c *Conf) reader() (reader, error) {
	switch {
	case c.ObjectsDir != "" && c.Kubeconfig != "":
		return nil, errors.New("objectsDir and kubeconfig are both set; give one of them")
	case c.ObjectsDir != "":
		return directory(c.ObjectsDir), nil
	case c.Kubeconfig != "":
		return newAPIServer(c.Kubeconfig)
	default:
		return nil, errors.New("neither objectsDir nor kubeconfig is set; give one of them")
	}
}

func request(a *skel.CmdArgs, args podArgs, prev types.Result) (ambient.AddRequest, error) {
	req := ambient.AddRequest{
		Netns: a.Netns, PodName: string(args.K8S_POD_NAME), PodNamespace: string(args.K8S_POD_NAMESPACE), UID: string(args.K8S_POD_UID),
	}
	result, err := types100.NewResultFromResult(prev)
	if err != nil {
		return req, fmt.Errorf("read prevResult: %w", err)
	}
	for _, ip := range result.IPs {
		req.IPs = append(req.IPs, ambient.AddIP{Interface: ip.Interface, Address: ip.Address, Gateway: ip.Gateway})
	}
	return req, nil
}
