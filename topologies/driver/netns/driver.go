// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Options say how a lab relates to this process. The zero value is good.
type Options struct {
	Detach   bool         // the lab outlasts this process, until Down
	Progress func(string) // what Up is doing; may be nil
}

// Driver is a lab.Driver of namespaces on this host.
type Driver struct {
	o Options

	mu     sync.Mutex
	dir    labdir.Dir
	holder *holderProcess // nil if another process started it, or nobody yet
	caps   lab.Capabilities
}

var _ lab.Driver = (*Driver)(nil)

// New is a driver whose lab is not up yet.
func New(o Options) *Driver { return &Driver{o: o} }

// Reach is a driver of the lab that stands in dir, even if it has not come up yet. It has no capabilities.
func Reach(dir labdir.Dir) *Driver { return &Driver{dir: dir} }

// Attach is a driver of the lab that stands in dir, whoever brought it up.
func Attach(ctx context.Context, dir labdir.Dir) (*lab.Lab, error) {
	reply, err := do(ctx, dir, order.Request{Info: &struct{}{}}, nil)
	if err != nil {
		return nil, fmt.Errorf("attach to lab %s: %w", dir.Name(), err)
	}
	if reply.Info == nil || reply.Info.Spec == nil {
		return nil, fmt.Errorf("attach to lab %s: it is not up yet", dir.Name())
	}
	return &lab.Lab{Driver: &Driver{dir: dir, caps: reply.Info.Capabilities}, Spec: reply.Info.Spec, Dir: string(dir)}, nil
}

// Dir is the lab's directory; "" before Up.
func (d *Driver) Dir() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return string(d.dir)
}

func (d *Driver) standing() (labdir.Dir, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dir == "" {
		return "", ErrNoLab
	}
	return d.dir, nil
}

// Up implements lab.Driver.
func (d *Driver) Up(ctx context.Context, spec *topologies.Spec, o lab.UpOptions) error {
	if len(spec.Clusters) != 1 {
		return fmt.Errorf("bring up %s: this driver realises exactly one cluster, the topology has %d", spec.Name, len(spec.Clusters))
	}
	if mode := spec.Clusters[0].KubeProxyMode; mode != "" {
		return fmt.Errorf("bring up %s: kubeProxyMode %s: %w: namespaces have no kube-proxy, their nodes know services by rules of the driver's own", spec.Name, mode, lab.ErrUnsupported)
	}
	bin, err := FindBinaries(o.Bin)
	if err != nil {
		return fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	request, err := upRequest(spec, o)
	if err != nil {
		return fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	dir, holder, err := d.start(ctx, spec.Name, o, bin)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.dir, d.holder = dir, holder
	d.mu.Unlock()
	if _, err := do(ctx, dir, order.Request{Up: request}, d.progress(o.Log)); err != nil {
		return errors.Join(err, d.Down(context.WithoutCancel(ctx)))
	}
	reply, err := do(ctx, dir, order.Request{Info: &struct{}{}}, nil)
	if err != nil {
		return errors.Join(err, d.Down(context.WithoutCancel(ctx)))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.caps = reply.Info.Capabilities
	if d.o.Detach {
		holder.detach()
	}
	return nil
}

// mostOfAName ends the search for a free name; nobody wants that many labs of one.
const mostOfAName = 100

// start starts a holder in the directory of that name or, if it may choose, of the first name like it that is free. Only a
// holder's lock decides that, so that drivers that choose at the same time choose differently.
func (d *Driver) start(ctx context.Context, name string, o lab.UpOptions, bin string) (labdir.Dir, *holderProcess, error) {
	for n := 1; ; n++ {
		dir, err := place(name, n, o.Dir)
		if err != nil {
			return "", nil, fmt.Errorf("bring up %s: %w", name, err)
		}
		holder, err := startHolder(ctx, dir, bin, d.o.Detach)
		if errors.Is(err, labdir.ErrTaken) && o.Unique && o.Dir == "" && n < mostOfAName {
			continue
		}
		return dir, holder, err
	}
}

// place is the directory of the nth lab of that name.
func place(name string, n int, dir string) (labdir.Dir, error) {
	if dir != "" {
		return labdir.At(dir)
	}
	if n > 1 {
		name = fmt.Sprintf("%s-%d", name, n)
	}
	return labdir.New(os.Getenv, name)
}

func upRequest(spec *topologies.Spec, o lab.UpOptions) (*order.Up, error) {
	objs, err := spec.Objects(spec.Clusters[0].Name)
	if err != nil {
		return nil, err
	}
	raw, err := encode(objs)
	if err != nil {
		return nil, err
	}
	plain := *spec
	plain.Clusters = slices.Clone(spec.Clusters)
	plain.Clusters[0].Objects = nil // they are among objs
	return &order.Up{Spec: &plain, Objects: raw, DaemonEnv: o.DaemonEnv}, nil
}

func encode(objs []runtime.Object) (order.Objects, error) {
	list := make(order.Objects, len(objs))
	for i, o := range objs {
		data, err := json.Marshal(withKind(o))
		if err != nil {
			return nil, fmt.Errorf("encode object %d: %w", i+1, err)
		}
		list[i] = data
	}
	return list, nil
}

// withKind fills in apiVersion and kind, which an object made in Go often lacks.
func withKind(o runtime.Object) runtime.Object {
	if !o.GetObjectKind().GroupVersionKind().Empty() {
		return o
	}
	for _, k := range source.Kinds() {
		if reflect.TypeOf(k.New()) == reflect.TypeOf(o) {
			o = o.DeepCopyObject()
			o.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(k.Versions[0], k.Name))
			return o
		}
	}
	return o
}

func (d *Driver) progress(log *slog.Logger) func(string) {
	return func(what string) {
		if log != nil {
			log.Info(what)
		}
		if d.o.Progress != nil {
			d.o.Progress(what)
		}
	}
}

// Down implements lab.Driver.
func (d *Driver) Down(ctx context.Context) error {
	d.mu.Lock()
	dir, holder := d.dir, d.holder
	d.dir, d.holder = "", nil
	d.mu.Unlock()
	if dir == "" {
		return nil
	}
	err := takeDown(ctx, dir)
	if holder != nil {
		holder.stop()
	}
	if err != nil && !errors.Is(err, ErrNoLab) {
		return fmt.Errorf("take down lab %s: %w", dir.Name(), err)
	}
	return nil
}

// takeDown asks for the end and waits for it: the connection ends with the holder.
func takeDown(ctx context.Context, dir labdir.Dir) error {
	e, err := ask(ctx, dir, order.Request{Down: &struct{}{}})
	if err != nil {
		return err
	}
	defer e.close()
	for {
		_, _, err := e.next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// Apply implements lab.Driver.
func (d *Driver) Apply(ctx context.Context, objs ...runtime.Object) error {
	return d.objects(ctx, objs, func(r *order.Request, list *order.Objects) { r.Apply = list })
}

// Delete implements lab.Driver.
func (d *Driver) Delete(ctx context.Context, objs ...runtime.Object) error {
	return d.objects(ctx, objs, func(r *order.Request, list *order.Objects) { r.Delete = list })
}

func (d *Driver) objects(ctx context.Context, objs []runtime.Object, set func(*order.Request, *order.Objects)) error {
	dir, err := d.standing()
	if err != nil {
		return err
	}
	list, err := encode(objs)
	if err != nil {
		return err
	}
	var r order.Request
	set(&r, &list)
	_, err = do(ctx, dir, r, nil)
	return err
}

// Pods implements lab.Driver.
func (d *Driver) Pods(ctx context.Context) ([]lab.PodInfo, error) {
	dir, err := d.standing()
	if err != nil {
		return nil, err
	}
	reply, err := do(ctx, dir, order.Request{Pods: &struct{}{}}, nil)
	return reply.Pods, err
}

// Capabilities implements lab.Driver.
func (d *Driver) Capabilities() lab.Capabilities {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.caps
}

// Inspect implements lab.Driver.
func (d *Driver) Inspect(ctx context.Context, t lab.Target) (lab.Inspection, error) {
	dir, err := d.standing()
	if err != nil {
		return lab.Inspection{}, err
	}
	reply, err := do(ctx, dir, order.Request{Inspect: &t}, nil)
	if err != nil {
		return lab.Inspection{}, err
	}
	return *reply.Inspection, nil
}

// Ended is closed when the holder that Up started has ended; nil if there is none.
func (d *Driver) Ended() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.holder == nil {
		return nil
	}
	return d.holder.ended
}
