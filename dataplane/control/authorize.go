// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// authorize judges whether c may have a certificate for want, given the objects there are. A node's proxy gets only
// identities of pods that run on its node, so that a stolen node gives away no other (reference A4).
// The error is a sentence for the caller.
func authorize(o *source.Objects, c Caller, want mesh.Identity, trusted []string, trustDomain string) error {
	if want.TrustDomain != trustDomain {
		return fmt.Errorf("%s is of trust domain %q, this authority is %q's", want, want.TrustDomain, trustDomain)
	}
	pod, err := callerPod(o, c)
	if err != nil {
		return err
	}
	if want.Namespace == c.Namespace && want.ServiceAccount == c.ServiceAccount {
		return nil
	}
	if !slices.Contains(trusted, c.Account()) {
		return fmt.Errorf("%s is not a trusted node account (%v), so it may have its own identity only", c.Account(), trusted)
	}
	if pod == nil {
		return fmt.Errorf("the token of %s is not bound to a pod, so nobody knows its node", c.Account())
	}
	if pod.Spec.NodeName == "" {
		return fmt.Errorf("pod %s/%s is on no node yet", pod.Namespace, pod.Name)
	}
	for _, p := range o.Pods {
		if p.Spec.NodeName == pod.Spec.NodeName && p.Namespace == want.Namespace && account(p) == want.ServiceAccount && p.Status.Phase != corev1.PodFailed {
			return nil
		}
	}
	return fmt.Errorf("no pod with service account %s/%s runs on node %s", want.Namespace, want.ServiceAccount, pod.Spec.NodeName)
}

// callerPod is the pod that c's token is bound to; nil if it is bound to none. A token outlives its pod, but must not be
// worth anything after that.
func callerPod(o *source.Objects, c Caller) (*corev1.Pod, error) {
	if c.Pod == (Ref{}) {
		return nil, nil
	}
	id := c.Namespace + "/" + c.Pod.Name
	pod := o.Pods[id]
	switch {
	case pod == nil:
		return nil, fmt.Errorf("pod %s, which the token is bound to, does not exist", id)
	case string(pod.UID) != c.Pod.UID:
		return nil, fmt.Errorf("pod %s has UID %q, but the token is bound to %q", id, pod.UID, c.Pod.UID)
	case terminated(pod):
		return nil, fmt.Errorf("pod %s, which the token is bound to, has ended", id)
	case account(pod) != c.ServiceAccount:
		return nil, fmt.Errorf("pod %s runs as %s, but the token is of %s", id, account(pod), c.ServiceAccount)
	case c.Node.Name != "" && c.Node.Name != pod.Spec.NodeName:
		return nil, fmt.Errorf("pod %s is on node %q, but the token is of node %q", id, pod.Spec.NodeName, c.Node.Name)
	}
	return pod, nil
}

func account(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName == "" {
		return mesh.DefaultServiceAccount
	}
	return p.Spec.ServiceAccountName
}
