// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/ambientlab/ambientlab/topologies"
)

// introduce says how to go on with a lab that stands.
func (a *app) introduce(ctx context.Context, c *candidate, spec *topologies.Spec, o upOptions) error {
	if c.kubeconfig != nil {
		return a.introduceCluster(ctx, c.kubeconfig(), spec, o)
	}
	if o.detach {
		a.progress("`lab ps` lists its pods, `lab down " + o.name + "` takes it down")
	} else {
		a.progress("`lab ps` in another terminal lists its pods; Ctrl-C takes it down")
	}
	return nil
}

// introduceCluster prints the kubeconfig's path, and five commands that may be copied as they are.
func (a *app) introduceCluster(ctx context.Context, kubeconfig string, spec *topologies.Spec, o upOptions) error {
	if _, err := fmt.Fprintln(a.stdout, kubeconfig); err != nil {
		return err
	}
	kubectl, which := "kubectl --kubeconfig "+kubeconfig, "lab"
	down := "lab down " + o.name
	switch {
	case o.driver == driverKube:
		which += " --kubeconfig " + kubeconfig
		if a.context != "" {
			kubectl, which = kubectl+" --context "+a.context, which+" --context "+a.context
		}
		down = which + " down"
	case !a.alone(ctx):
		which += " --lab " + o.name
	}
	if !o.detach {
		down = "Ctrl-C takes it down"
	}
	pod, url := callOf(&spec.Clusters[0])
	for _, line := range []string{
		kubectl + " get pods -A",
		which + " exec " + pod + " -- workload call " + url,
		which + " trace " + pod + " " + url,
		which + " logs --all -f",
		down,
	} {
		a.progress("  " + line)
	}
	return nil
}

// alone reports whether no second lab stands, so that commands need not name one.
func (a *app) alone(ctx context.Context) bool {
	labs, err := a.labs(ctx)
	n := 0
	for _, s := range labs {
		if s.stands() {
			n++
		}
	}
	return err == nil && n == 1
}

// callOf is a call that the topology's mesh can carry, for an example: from a pod of one workload to another's service.
func callOf(c *topologies.Cluster) (pod, url string) {
	w := &c.Workloads[0]
	pod, url = w.Namespace+"/"+w.Name, "http://SERVICE"
	if w.Replicas > 1 {
		pod += "-1"
	}
	for i := range c.Services {
		s := &c.Services[i]
		if len(s.Ports) == 0 || s.Selector["app"] == w.Name || s.Name == w.Name {
			continue
		}
		url = "http://" + s.Name + "." + s.Namespace
		if s.Ports[0].Port != 80 {
			url += fmt.Sprintf(":%d", s.Ports[0].Port)
		}
		if strings.HasPrefix(s.Ports[0].Name, "http") {
			break
		}
	}
	return pod, url
}
