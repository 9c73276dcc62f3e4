// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/dataplane/source"
	"github.com/ambientlab/ambientlab/dataplane/source/file"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Get implements lab.Driver. It reads the lab's files, as the control plane does.
func (d *Driver) Get(_ context.Context, obj runtime.Object) error {
	dir, err := d.standing()
	if err != nil {
		return err
	}
	return get(dir, obj)
}

func get(dir labdir.Dir, obj runtime.Object) error {
	into, ok := obj.(source.Object)
	if !ok {
		return fmt.Errorf("get a %T: it has no metadata", obj)
	}
	key := source.Key{
		Kind: withKind(obj).GetObjectKind().GroupVersionKind().Kind, Namespace: into.GetNamespace(), Name: into.GetName(),
	}
	all, problems, err := file.Read(dir.Objects())
	if err != nil {
		return fmt.Errorf("get %s: %w", key, err)
	}
	found := all.Get(key)
	if found == nil {
		err = lab.ErrNotFound
		for _, p := range problems {
			if p.Key == key {
				err = errors.Join(err, p)
			}
		}
		return fmt.Errorf("get %s: %w", key, err)
	}
	data, err := json.Marshal(found)
	if err == nil {
		err = json.Unmarshal(data, obj)
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", key, err)
	}
	return nil
}
