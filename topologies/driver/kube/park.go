// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/e2e-framework/klient/k8s"

	"github.com/ambientlab/ambientlab/kindconfigs/install"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// labelParked on namespace istio-system says that its mesh is nobody's lab, and waits for the next.
const labelParked = prefixOwn + "parked"

// Park takes the lab down, but for its mesh and the topology's namespaces: Up of a topology of the same name on that cluster
// takes them up again, with daemons that have what they are told then, and every other Up removes them first. After an error
// what there is, is Down's to remove.
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
	if err := s.api.unlabel(ctx, labelMember, labelNode); err != nil { // daemons that were stopped start with this
		return err
	}
	kinds, err := s.api.kinds()
	if err != nil {
		return err
	}
	all, err := s.api.find(ctx, kinds, LabelLab+"="+s.name)
	if err != nil {
		return err
	}
	stays, err := s.staying()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(o *found) bool {
		return stays[o.what] || stays[strings.Replace(o.what, "Endpoints ", "Service ", 1)] || len(o.object.GetOwnerReferences()) > 0
	})
	if err := s.end(ctx, all, metav1.DeletePropagationForeground); err != nil {
		return err
	}
	return errors.Join(s.leaveGuests(ctx, kinds, s.name), s.mark(ctx, true))
}

// staying are the objects of an installation and the topology's namespaces, as messages name them.
func (s *stand) staying() (map[string]bool, error) {
	objs, err := install.Objects(s.installation(nil))
	if err != nil {
		return nil, err
	}
	p, err := split(s.spec)
	if err != nil {
		return nil, err
	}
	for _, o := range p.objects {
		if _, is := o.(*corev1.Namespace); is {
			objs = append(objs, o)
		}
	}
	names := map[string]bool{}
	for _, o := range objs {
		u, err := document(o)
		if err != nil {
			return nil, err
		}
		names[name(u)] = true
	}
	return names, nil
}

// mark says whether the mesh is parked.
func (s *stand) mark(ctx context.Context, parked bool) error {
	value := "null"
	if parked {
		value = `"true"`
	}
	patch := `{"metadata":{"labels":{"` + labelParked + `":` + value + `}}}`
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: systemNamespace}}
	return s.api.res.Patch(ctx, ns, k8s.Patch{PatchType: types.MergePatchType, Data: []byte(patch)})
}

// takeUp makes a parked mesh this lab's own, or removes it if it was another topology's.
func (s *stand) takeUp(ctx context.Context, parked string) error {
	if parked != s.name {
		s.say("removing the mesh that lab " + parked + " has left")
		return s.sweep(ctx, parked)
	}
	return s.mark(ctx, false)
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
	want, has := template.Spec.Containers[0], p.Spec.Containers[0]
	c := mainStatus(p)
	same := equality.Semantic.DeepEqual
	return (c == nil || c.RestartCount == 0) && has.Image == want.Image && same(has.Env, want.Env) && same(has.Args, want.Args) && same(has.Command, want.Command)
}

// installation is what the mesh is to be.
func (s *stand) installation(env map[string][]string) install.Options {
	return install.Options{
		Image: s.image, ClusterID: s.cluster.Name, Network: s.cluster.Network, TrustDomain: s.cluster.TrustDomain, Domain: s.cluster.Domain,
		DaemonEnv: s.daemonEnv(env), NodeSelector: map[string]string{labelMember: s.name},
	}
}
