// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ambientlab/ambientlab/dataplane/cni/ambient"
)

// object is what the plugin reads of a pod or a namespace.
type object struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		HostNetwork bool `json:"hostNetwork"`
	} `json:"spec"`
}

func (o *object) ambient() ambient.Pod {
	return ambient.Pod{
		Namespace: o.Metadata.Namespace, Labels: o.Metadata.Labels, Annotations: o.Metadata.Annotations, HostNetwork: o.Spec.HostNetwork,
	}
}

// reader finds one object; namespace is "" for a Namespace. An object that does not exist is fs.ErrNotExist.
type reader interface {
	read(ctx context.Context, kind, namespace, name string) (*object, error)
}

// errStaleToken: an agent's token ends with its pod, and the next agent writes another one.
var errStaleToken = errors.New("the kubeconfig has the token of an agent that is gone: is one running on this node?")

// lookUp reads the pod and its namespace. The pod may not have arrived yet, or the API server be away: it is tried again. A
// token that is refused stays refused: kubelet calls the plugin again, which then reads what the next agent has written.
func lookUp(ctx context.Context, r reader, namespace, name string, t Timing) (pod, ns *object, err error) {
	tries := 1
	for ; ; tries++ {
		pod, err = r.read(ctx, "Pod", namespace, name)
		if err == nil {
			ns, err = r.read(ctx, "Namespace", "", namespace)
		}
		if err == nil || tries >= t.Tries || errors.Is(err, errStaleToken) {
			break
		}
		timer := time.NewTimer(t.Interval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, fmt.Errorf("look up the pod: %w", errors.Join(ctx.Err(), err))
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look up the pod, %d times: %w", tries, err)
	}
	return pod, ns, nil
}

// directory holds objects as files. An object is usually in the file that bears its name; a hand-written directory may
// have it in any.
type directory string

func (d directory) read(_ context.Context, kind, namespace, name string) (*object, error) {
	file := strings.ToLower(kind) + "." + name + ".yaml"
	if namespace != "" {
		file = strings.ToLower(kind) + "." + namespace + "." + name + ".yaml"
	}
	if o, err := find(filepath.Join(string(d), file), kind, namespace, name); o != nil || (err != nil && !errors.Is(err, fs.ErrNotExist)) {
		return o, err
	}
	var found *object
	err := filepath.WalkDir(string(d), func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path == filepath.Join(string(d), "status"):
			return fs.SkipDir // parts of objects
		case e.IsDir() || strings.HasPrefix(e.Name(), ".") || filepath.Ext(path) != ".yaml":
			return nil
		}
		// A bad file is somebody else's problem unless nothing is found.
		if found, _ = find(path, kind, namespace, name); found != nil {
			return fs.SkipAll
		}
		return nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("%s %s/%s in %s: %w", kind, namespace, name, d, fs.ErrNotExist)
	}
	return found, err
}

// find looks for the object in one file, which may hold several; nil if it is not there.
func find(path, kind, namespace, name string) (*object, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for doc := range strings.SplitSeq("\n"+string(data), "\n---") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if o.Kind == kind && o.Metadata.Namespace == namespace && o.Metadata.Name == name {
			return &o, nil
		}
	}
	return nil, nil
}
