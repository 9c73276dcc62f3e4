// SPDX-License-Identifier: Apache-2.0

// Package zds is the conversation between a node's CNI agent and the node's proxy about which pods to serve: the agent
// listens on a Unix socket of type SEQPACKET, the proxy dials and says hello, and each pod's network namespace travels as
// a descriptor. One message is one packet; every request is acknowledged before the next is sent.
// What to do with a pod is the Handler's business, which pods there are the agent's.
// Source: Istio's zds.proto, ztunnel's and the CNI agent's handling of it (reference: ZDS).
package zds

import (
	"errors"
	"time"
)

// maxPacket is the size of every peer's buffer; a longer packet would arrive cut off.
const maxPacket = 1024

// messageTimeout is how long a peer may take to accept a packet or to acknowledge it.
const messageTimeout = 5 * time.Second

// ErrProtocol says that the peer broke the rules of the conversation, which ends it.
var ErrProtocol = errors.New("zds protocol error")

// Workload is a pod to serve. UID is Kubernetes' uid of the pod.
type Workload struct {
	UID, Name, Namespace, ServiceAccount string
}
