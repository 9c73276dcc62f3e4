// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
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

// authoritySecret is what the control plane keeps its authority in where there is an API server; in a lab of ours it is files.
const authoritySecret = "istio-ca-secret"

// getAuthority fills in the Secret, of which each file is a key.
func getAuthority(dir labdir.Dir, s *corev1.Secret) error {
	files, err := os.ReadDir(dir.CA())
	if err != nil {
		return fmt.Errorf("get the Secret %s: %w", s.Name, err)
	}
	s.Data = map[string][]byte{}
	for _, f := range files {
		if s.Data[f.Name()], err = os.ReadFile(filepath.Join(dir.CA(), f.Name())); err != nil {
			return fmt.Errorf("get the Secret %s: %w", s.Name, err)
		}
	}
	return nil
}

func get(dir labdir.Dir, obj runtime.Object) error {
	if s, is := obj.(*corev1.Secret); is && s.Namespace == "istio-system" && s.Name == authoritySecret {
		return getAuthority(dir, s)
	}
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
