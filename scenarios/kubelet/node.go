// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"path"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/scenarios/world"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// node is the file system of a node, as an administrator's pod with a hostPath sees it.
type node struct {
	w   *world.World
	pod lab.PodRef
}

// mounted is where that pod has the node's root.
const mounted = "/host"

// openNode starts such a pod, outside the mesh, which goes when the scenario ends.
func openNode(ctx SpecContext, w *world.World, name string) *node {
	GinkgoHelper()
	p := pod(w, "files-"+name, func(p *corev1.Pod) {
		p.Namespace, p.Spec.ServiceAccountName, p.Spec.NodeName, p.Spec.HostPID = "plain", "default", name, true
		p.Labels[mesh.LabelDataplaneMode] = mesh.ModeNone
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "root", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
		c := &p.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "root", MountPath: mounted})
	})
	apply(ctx, w, p)
	ref := lab.PodRef{Namespace: p.Namespace, Name: p.Name}
	_, err := w.WaitPod(ctx, ref, func(p lab.PodInfo) bool { return p.Ready })
	Expect(err).NotTo(HaveOccurred())
	return &node{w: w, pod: ref}
}

func (n *node) look(ctx context.Context, file string) workload.Look {
	GinkgoHelper()
	out, err := n.w.Output(ctx, n.pod, topologies.WorkloadBinary, "look", mounted+file)
	Expect(err).NotTo(HaveOccurred())
	var seen map[string]workload.Look
	Expect(json.Unmarshal(out, &seen)).To(Succeed())
	return seen[mounted+file]
}

func (n *node) has(ctx context.Context, file string) bool {
	GinkgoHelper()
	return n.look(ctx, file).Exists
}

func (n *node) read(ctx context.Context, file string) string {
	GinkgoHelper()
	out, err := n.w.Output(ctx, n.pod, topologies.WorkloadBinary, "cat", mounted+file)
	Expect(err).NotTo(HaveOccurred())
	return string(out)
}

func (n *node) write(ctx context.Context, file, content string) {
	GinkgoHelper()
	var problem bytes.Buffer
	exit, err := n.w.Exec(ctx, n.pod, []string{topologies.WorkloadBinary, "write", mounted + file}, lab.Stdio{In: strings.NewReader(content), Err: &problem})
	Expect(err).NotTo(HaveOccurred())
	Expect(exit).To(BeZero(), problem.String())
}

// configs is where a container runtime looks for CNI configuration.
const configs = "/etc/cni/net.d"

// chain is the file that a container runtime takes: the first by name.
func (n *node) chain(ctx context.Context) (file, content string) {
	GinkgoHelper()
	for _, name := range n.look(ctx, configs).Entries {
		if ext := path.Ext(name); ext == ".conflist" || ext == ".conf" || ext == ".json" {
			file = path.Join(configs, name)
			return file, n.read(ctx, file)
		}
	}
	Fail("the node has no CNI configuration")
	return "", ""
}
