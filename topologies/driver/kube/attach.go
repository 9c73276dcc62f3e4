// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// A standing lab is described by a ConfigMap beside its mesh, for those who attach later.
const (
	recordName     = "ambientlab"
	recordTopology = "topology.json"
	recordNodes    = "nodes.json" // the cluster's names of nodes by the topology's
	recordImage    = "image"
)

// record is that ConfigMap. It goes with the lab.
func (s *stand) record() (*corev1.ConfigMap, error) {
	spec, err := s.spec.Document()
	if err != nil {
		return nil, err
	}
	names, err := json.Marshal(s.nodes.real)
	if err != nil {
		return nil, fmt.Errorf("record the topology: %w", err)
	}
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: recordName},
		Data:       map[string]string{recordTopology: string(spec), recordNodes: string(names), recordImage: s.image},
	}, nil
}

// Attach is a driver of the lab that stands on a cluster, whoever brought it up. Of Options, Nodes and Image come from the lab.
// Daemons' logs reach back as far as kubelet has them. Its driver, a *Driver, has a method Leave for who has seen enough.
func Attach(ctx context.Context, o Options) (*lab.Lab, error) {
	fail := func(err error) (*lab.Lab, error) { return nil, fmt.Errorf("attach to the lab on a cluster: %w", err) }
	config, err := o.restConfig(ctx)
	if err != nil {
		return fail(err)
	}
	api, err := connect(config)
	if err != nil {
		return fail(err)
	}
	var record corev1.ConfigMap
	if err := api.res.Get(ctx, recordName, systemNamespace, &record); apierrors.IsNotFound(err) {
		return fail(fmt.Errorf("no lab stands on %s: bring one up with `lab up`", config.Host))
	} else if err != nil {
		return fail(err)
	}
	spec, err := topologies.Load(strings.NewReader(record.Data[recordTopology]))
	if err == nil {
		err = json.Unmarshal([]byte(record.Data[recordNodes]), &o.Nodes)
	}
	if err != nil {
		return fail(err)
	}
	o.Image, o.Force = record.Data[recordImage], true
	d := New(o)
	s, err := d.prepare(ctx, spec, lab.UpOptions{})
	if err != nil {
		return fail(err)
	}
	if s.pods, err = watchPods(ctx, s.api.core, s.logs.changed); err == nil {
		err = s.fleet.load(ctx)
	}
	if err != nil {
		return fail(errors.Join(err, s.leave()))
	}
	d.stand, d.caps = s, d.o.capabilities(s)
	return &lab.Lab{Driver: d, Spec: spec}, nil
}
