// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/onsi/ginkgo/v2"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// spare are the labs of this process that wait for their next borrower, by topology.
var spare = map[string]*World{}

// loan is what a borrower must leave as it was.
type loan struct {
	topology string
	known    []string // what the proxies knew when the lab was new

	mu      sync.Mutex
	added   map[string]runtime.Object // guarded by mu; the borrower's own objects, by kind, namespace and name
	first   map[string]bool           // objects of the topology, by the same
	links   map[string]bool           // guarded by mu; that are not as they were
	changed string                    // guarded by mu; what else was done; "" is nothing
}

// Borrow is Start for a scenario to which it is all the same what a lab has lived through, and that changes nothing but
// objects of its own and links that it restores: it gets a lab that an earlier scenario borrowed, if there is one. What it
// applied is deleted when it ends. A lab in which something else was done, a scenario failed, or the proxies do not forget
// what is gone, is nobody's any more.
func Borrow(ctx context.Context, topology string) (*World, error) {
	if err := owning(); err != nil {
		return nil, err
	}
	w := spare[topology]
	delete(spare, topology)
	if w == nil {
		var err error
		if w, err = start(ctx, topology, lab.UpOptions{}, func(*topologies.Spec) {}); err != nil {
			return nil, err
		}
		if w.loan, err = newLoan(ctx, w, topology); err != nil {
			return nil, errors.Join(err, w.down(ctx))
		}
	}
	ginkgo.DeferCleanup(w.giveBack, ginkgo.NodeTimeout(Budget.Down+Budget.Spec))
	return w, nil
}

func newLoan(ctx context.Context, w *World, topology string) (*loan, error) {
	l := &loan{topology: topology, added: map[string]runtime.Object{}, first: map[string]bool{}, links: map[string]bool{}}
	objs, err := w.Spec.Objects(w.Spec.Clusters[0].Name)
	if err != nil {
		return nil, err
	}
	for _, o := range objs {
		l.first[objectName(o)] = true
	}
	l.known, err = w.known(ctx)
	return l, err
}

// giveBack runs when the borrower has ended, and all that it deferred.
func (w *World) giveBack(ctx context.Context) error {
	err := collectIfFailed(ctx, w)
	if err != nil || ginkgo.CurrentSpecReport().Failed() || spare[w.loan.topology] != nil {
		return errors.Join(err, w.down(ctx))
	}
	if err := w.restore(ctx); err != nil {
		ginkgo.GinkgoWriter.Println("nobody borrows this lab any more:", err)
		return w.down(ctx)
	}
	spare[w.loan.topology] = w
	return nil
}

func (w *World) restore(ctx context.Context) error {
	added, err := w.loan.end()
	if err != nil {
		return err
	}
	for _, o := range added {
		if err := w.Lab.Delete(ctx, o); err != nil {
			return fmt.Errorf("delete %s: %w", objectName(o), err)
		}
	}
	err = Wait(ctx, Budget.Propagation, func(ctx context.Context) (bool, error) {
		now, err := w.known(ctx)
		if err != nil || !slices.Equal(now, w.loan.known) {
			return false, errors.Join(err, fmt.Errorf("the proxies know %q, which was %q", now, w.loan.known))
		}
		return true, nil
	})
	return errors.Join(err, w.Settle(ctx))
}

// end returns what the borrower leaves, and an error if that is not all.
func (l *loan) end() (added map[string]runtime.Object, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	added, l.added = l.added, map[string]runtime.Object{}
	for name := range l.links {
		err = errors.Join(err, fmt.Errorf("link %s is not as it was", name))
	}
	if l.changed != "" {
		err = errors.Join(err, errors.New(l.changed))
	}
	return added, err
}

// known is what the ztunnels know of the mesh.
func (w *World) known(ctx context.Context) ([]string, error) {
	var names []string
	for _, node := range w.Nodes() {
		d, err := w.ConfigDump(ctx, node)
		if err != nil {
			return nil, err
		}
		for _, o := range d.Workloads {
			names = append(names, fmt.Sprintf("%s workload %s %s", node, o.UID, o.Status))
		}
		for _, o := range d.Services {
			if strings.HasSuffix(o.Hostname, tideSuffix) {
				continue
			}
			names = append(names, fmt.Sprintf("%s service %s/%s %d", node, o.Namespace, o.Hostname, len(o.Endpoints)))
		}
		for _, o := range d.Policies {
			names = append(names, fmt.Sprintf("%s policy %s/%s", node, o.Namespace, o.Name))
		}
	}
	slices.Sort(names)
	return names, nil
}

// apply notes what the borrower adds; of what is the topology's, that it was changed.
func (l *loan) apply(objs []runtime.Object) {
	l.each(objs, func(name string, o runtime.Object) { l.added[name] = o })
}

func (l *loan) delete(objs []runtime.Object) {
	l.each(objs, func(name string, _ runtime.Object) { delete(l.added, name) })
}

func (l *loan) each(objs []runtime.Object, own func(name string, o runtime.Object)) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range objs {
		if name := objectName(o); l.first[name] {
			l.changed = "changed " + name
		} else {
			own(name, o)
		}
	}
}

// touch notes something that is not undone.
func (l *loan) touch(what string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = what
}

// link notes whether a link is as it was.
func (l *loan) link(name string, restored bool) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if restored {
		delete(l.links, name)
	} else {
		l.links[name] = true
	}
}

// objectName tells objects apart, whether their kind is filled in or follows from their type.
func objectName(o runtime.Object) string {
	name := fmt.Sprintf("%T", o)
	name = name[strings.LastIndexByte(name, '.')+1:]
	if m, ok := o.(interface {
		GetName() string
		GetNamespace() string
	}); ok {
		name += " " + strings.TrimPrefix(m.GetNamespace()+"/"+m.GetName(), "/")
	}
	return name
}
