// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/e2e-framework/klient/k8s"
	"sigs.k8s.io/e2e-framework/klient/k8s/resources"

	"github.com/ambientlab/ambientlab/kindconfigs/install"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// labelParked on namespace istio-system says that its mesh is nobody's lab, and waits for the next: a digest of what the lab that
// left it was made from.
const labelParked = prefixOwn + "parked"

// annotationKinds on that namespace has the kinds of what the lab has left.
const annotationKinds = prefixOwn + "kinds"

// Park takes the lab down, but for its mesh and what of the topology is as it was made: Up of a topology of the same name on that
// cluster takes it up again, with daemons that have what they are told then, and every other Up keeps what it can use. Pods that stay
// are the processes that they were; so are the connections of daemons that stay. After an error what there is, is Down's to remove.
func (d *Driver) Park(ctx context.Context) error {
	d.mu.Lock()
	s := d.stand
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	if err := s.park(ctx); err != nil {
		return fmt.Errorf("park lab %s: %w", s.name, err)
	}
	return d.Leave()
}

func (s *stand) park(ctx context.Context) error {
	s.say("taking the lab down, but for its mesh")
	if err := s.restoreAll(ctx); err != nil {
		return err
	}
	if err := s.api.startStopped(ctx); err != nil {
		return err
	}
	p, err := split(s.spec)
	if err != nil {
		return err
	}
	made, err := s.made(p)
	if err != nil {
		return err
	}
	emptied, err := s.clear(ctx, p)
	if err == nil {
		err = s.awaitGone(ctx, emptied)
	}
	return errors.Join(err, s.mark(ctx, &parked{name: s.name, made: made, kinds: s.known()}))
}

// clear deletes what the lab has beside the mesh and the topology, and pods of the topology that are not as they were made. All of it is
// gone but for namespaces, which are about to go.
func (s *stand) clear(ctx context.Context, p *parts) (emptied []*found, err error) {
	kinds, all, err := s.belongings(ctx, s.name)
	if err != nil {
		return nil, err
	}
	stays, err := s.staying(p)
	if err != nil {
		return nil, err
	}
	var rest []*found
	for _, o := range all {
		switch {
		case stays[o.what] || stays[strings.Replace(o.what, "Endpoints ", "Service ", 1)] || len(o.object.GetOwnerReferences()) > 0:
		case o.kind.Group == "" && o.kind.Kind == "Namespace": // whose controller looks again late if there is something in them
			emptied = append(emptied, o)
		default:
			rest = append(rest, o)
		}
	}
	if err := s.end(ctx, rest, withPods); err != nil {
		return nil, err
	}
	return emptied, errors.Join(s.deleteAll(ctx, emptied, withPods), s.leaveGuests(ctx, kinds, s.name))
}

// withPods has what makes pods end after them: its own end is then theirs. Of the rest the garbage collector would have to look at
// each, one after the other.
func withPods(o *found) metav1.DeletionPropagation {
	if o.kind.Group == "apps" || o.kind.Group == "batch" {
		return metav1.DeletePropagationForeground
	}
	return metav1.DeletePropagationBackground
}

// staying are the objects of an installation and of the topology, as messages name them.
func (s *stand) staying(p *parts) (map[string]bool, error) {
	objs, err := install.Objects(s.installation(nil))
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, o := range append(objs, p.objects[:len(p.objects)-len(p.pods)]...) {
		u, err := document(o)
		if err != nil {
			return nil, err
		}
		names[name(u)] = true
	}
	for _, want := range p.pods {
		made, err := podDigest(s.fit(want), s.podNetwork)
		if err != nil {
			return nil, err
		}
		ref := refOf(want)
		names["Pod "+ref.String()] = intact(s.pods.get(ref), made)
	}
	return names, nil
}

// intact reports whether a pod is what that was made from: nobody gave it other labels, and its containers are its first.
func intact(p *corev1.Pod, made string) bool {
	return p != nil && podReady(p) && p.Annotations[annotationMade] == made && len(p.Spec.EphemeralContainers) == 0 &&
		!slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.RestartCount > 0 })
}

// made is the digest of a topology, as this cluster gets it.
func (s *stand) made(p *parts) (string, error) {
	var all []any
	for _, o := range p.objects {
		if pod, is := o.(*corev1.Pod); is {
			o = s.fit(pod)
		}
		all = append(all, o)
	}
	return digest(append(all, s.podNetwork))
}

// podDigest is that of a pod's spec and of what its network is like, a dot, and that of its labels and annotations, which alone can change.
func podDigest(p *corev1.Pod, network string) (string, error) {
	spec, err := digest([]any{p.Spec, network})
	if err != nil {
		return "", err
	}
	meta, err := digest([]any{p.Labels, p.Annotations})
	return spec + "." + meta, err
}

// changed is the digest of a pod that was made from one and has the labels and annotations of another.
func changed(from, to string) string {
	spec, _, _ := strings.Cut(from, ".")
	_, meta, _ := strings.Cut(to, ".")
	return spec + "." + meta
}

// digest tells objects apart, in as many letters as a label may have.
func digest(v any) (string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode an object: %w", err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16]), nil
}

// mark says what is parked, nil if nothing is.
func (s *stand) mark(ctx context.Context, p *parked) error {
	var made, kinds *string
	if p != nil {
		made, kinds = &p.made, new(p.kinds.String())
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels": map[string]*string{labelParked: made}, "annotations": map[string]*string{annotationKinds: kinds},
	}})
	if err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: systemNamespace}}
	return s.api.res.Patch(ctx, ns, k8s.Patch{PatchType: types.MergePatchType, Data: patch})
}

// parked is what a lab has left on a cluster.
type parked struct {
	name  string // the lab's; "" is nothing
	made  string // its topology's digest
	kinds kindSet
}

// recall has the lab know the kinds of what another has left; all that there are if that did not say.
func (s *stand) recall(was parked) error {
	kinds := was.kinds
	if len(kinds) == 0 {
		all, err := s.api.kinds()
		if err != nil {
			return err
		}
		for _, k := range all {
			kinds[k.kind] = true
		}
	}
	for kind := range kinds {
		s.note(kind)
	}
	return nil
}

// takeUp makes a parked mesh this lab's own, and what differs of the topology's goes: of another topology most. It returns what is left.
func (s *stand) takeUp(ctx context.Context, was parked, p *parts) (stock, error) {
	if err := s.recall(was); err != nil {
		return nil, err
	}
	if was.name != s.name {
		s.say("taking over the mesh that lab " + was.name + " has left")
		if err := s.inherit(ctx, was.name); err != nil {
			return nil, err
		}
	}
	made, err := s.made(p)
	if err == nil && made != was.made {
		_, err = s.clear(ctx, p) // whoever wants one of the namespaces waits for its end: see store
	}
	if err == nil {
		err = s.mark(ctx, nil)
	}
	if err != nil {
		return nil, err
	}
	return s.takeStock(ctx)
}

// inherit makes what another lab has left this one's, but for nodes that it has not, and for services, whose addresses cannot be changed.
func (s *stand) inherit(ctx context.Context, of string) error {
	kinds, all, err := s.belongings(ctx, of)
	if err != nil {
		return err
	}
	patch := []byte(`{"metadata":{"labels":{"` + LabelLab + `":"` + s.name + `"}}}`)
	takeOver := func(ctx context.Context, o *found) error {
		_, err := o.at.Patch(ctx, o.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
		if unlessGone(err) != nil {
			return fmt.Errorf("take over %s: %w", o.what, err)
		}
		return nil
	}
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	var services []*found
	var last *found // it says whose the mesh is
	for _, o := range all {
		switch {
		case len(o.object.GetOwnerReferences()) > 0:
		case o.kind.Kind == "Namespace" && o.name == systemNamespace:
			last = o
		case o.kind.Group == "" && (o.kind.Kind == "Service" || o.kind.Kind == "Endpoints") && o.object.GetNamespace() != systemNamespace:
			services = append(services, o)
		default:
			g.Go(func() error { return takeOver(each, o) })
		}
	}
	err = errors.Join(g.Wait(), s.end(ctx, services, withPods), s.leaveGuests(ctx, kinds, of), s.api.unlabel(ctx, labelMember, labelNode), s.leaveNodes(ctx))
	if err == nil && last != nil {
		err = takeOver(ctx, last)
	}
	return err
}

// leaveNodes takes the mesh from nodes that another lab had and this one has not.
func (s *stand) leaveNodes(ctx context.Context) error {
	var list corev1.NodeList
	if err := s.api.res.List(ctx, &list, resources.WithLabelSelector(labelMember)); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	ours := slices.Collect(maps.Values(s.nodes.real))
	var errs []error
	for _, node := range list.Items {
		if !slices.Contains(ours, node.Name) {
			errs = append(errs, s.api.patchNode(ctx, node.Name, map[string]*string{labelMember: nil, labelNode: nil}, nil))
		}
	}
	return errors.Join(errs...)
}

// renew replaces daemons that a parked mesh has and this lab would not: started otherwise, or started again since.
func (f *fleet) renew(ctx context.Context) error {
	grace := graceSeconds
	for _, k := range f.keys() {
		for _, p := range f.pods(k) {
			if p.DeletionTimestamp == nil && !f.asInstalled(k, p) {
				err := f.s.api.core.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace})
				if unlessGone(err) != nil {
					return fmt.Errorf("replace %s: %w", k, err)
				}
			}
		}
	}
	return f.s.pods.await(ctx, func() (string, bool) {
		for _, k := range f.keys() {
			for _, p := range f.pods(k) {
				if !f.asInstalled(k, p) {
					return fmt.Sprintf("pod %s of the mesh before does not end", p.Name), false
				}
			}
		}
		return "", true
	})
}

// asInstalled reports whether a daemon's pod is what its template makes now.
func (f *fleet) asInstalled(k key, p *corev1.Pod) bool {
	template := &f.deploy.Spec.Template
	if k.daemon != lab.DaemonControl {
		template = &f.sets[k.daemon].Spec.Template
	}
	if !equality.Semantic.DeepEqual(p.Spec.NodeSelector, template.Spec.NodeSelector) { // that its controller replaces
		return false
	}
	want, has := template.Spec.Containers[0], p.Spec.Containers[0]
	c := mainStatus(p)
	same := equality.Semantic.DeepEqual
	return (c == nil || c.RestartCount == 0) && has.Image == want.Image && same(has.Env, want.Env) && same(has.Args, want.Args) && same(has.Command, want.Command)
}

// installation is what the mesh is to be.
func (s *stand) installation(env map[string][]string) install.Options {
	return install.Options{
		Image: s.image, ClusterID: s.cluster.Name, Network: s.cluster.Network, TrustDomain: s.cluster.TrustDomain, Domain: s.cluster.Domain,
		DaemonEnv: s.daemonEnv(env), NodeSelector: map[string]string{labelMember: member},
	}
}
