// SPDX-License-Identifier: Apache-2.0

// Package ambient is what a node's CNI plugin and agent agree on: which pods are in the mesh, and how the plugin asks for
// one. It is small, because the plugin starts anew for every pod.
// Sources: reference, "Labels and annotations", "CNI plugin"; Istio cni/pkg/nodeagent, CNIPluginAddEvent, and
// cni/pkg/log.
package ambient

import (
	"net"
	"slices"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// SystemNamespace is where the mesh's own parts run.
const SystemNamespace = "istio-system"

// Pod is what decides whether a pod is in the mesh.
type Pod struct {
	Namespace   string
	Labels      map[string]string
	Annotations map[string]string
	HostNetwork bool
}

// Verdict says whether a pod is to be enrolled, and why, in words for a log.
type Verdict struct {
	Enrol bool
	Why   string
}

// Decide judges a pod by itself and by its namespace's labels. A pod's own label wins over its namespace's.
func Decide(p Pod, namespaceLabels map[string]string, excluded []string) Verdict {
	mode, where := p.Labels[mesh.LabelDataplaneMode], "the pod's label"
	if mode == "" {
		mode, where = namespaceLabels[mesh.LabelDataplaneMode], "the namespace's label"
	}
	switch {
	case p.HostNetwork:
		return Verdict{Why: "it shares the node's network"}
	case slices.Contains(excluded, p.Namespace):
		return Verdict{Why: "its namespace is excluded"}
	case p.Annotations[mesh.AnnotationSidecar] != "":
		return Verdict{Why: "it has a sidecar"}
	case p.Namespace == SystemNamespace && slices.Contains(own, p.Labels["app"]):
		return Verdict{Why: "it is a part of the mesh itself"}
	case mode != mesh.ModeAmbient:
		return Verdict{Why: "neither it nor its namespace asks for it, or it opts out"}
	default:
		return Verdict{Enrol: true, Why: where}
	}
}

// own are the apps that can never be captured: the proxy would wait for itself.
var own = []string{"ztunnel", "istio-cni-node", "cni-agent"}

// AddPath is where the agent takes requests: HTTP over a Unix socket, method POST, an AddRequest as JSON. 200 means that the
// pod may start; any other status comes with a sentence that says why not.
const AddPath = "/cmdadd"

// LogPath is where the agent takes what the plugin logs, on a socket of its own: HTTP, method POST, a JSON array of strings, of
// which each is an object with "level" (debug, info, warn or error) and "msg", and whatever else the plugin says with it.
const LogPath = "/log"

// AddRequest asks the agent to enrol a pod whose namespace has just been made. Names and encoding are upstream's, so that
// either plugin can ask either agent. UID is ours: upstream's plugin does not send it, upstream's agent ignores it.
type AddRequest struct {
	Netns        string
	PodName      string
	PodNamespace string
	IPs          []AddIP
	UID          string `json:",omitempty"`
}

// AddIP is one address of the pod. Upstream encodes package net's own types: an address and a gateway are text, "" if there
// is none; a mask is base64.
type AddIP struct {
	Interface *int // an index into the interfaces of the plugin's result; nil if it names none
	Address   net.IPNet
	Gateway   net.IP
}
