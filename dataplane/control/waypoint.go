// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// labelUseWaypointNamespace names another namespace than the object's own.
const labelUseWaypointNamespace = mesh.LabelUseWaypoint + "-namespace"

// waypoints says of each service that asks for a waypoint that it has none. Calls do not wait for one, here and upstream: who
// believes that a waypoint judges them must be able to see that it does not.
func (c *compiler) waypoints() {
	for _, s := range sorted(c.objects.Services) {
		name, field := c.waypointOf(s)
		if name == "" || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		cond := conditionOf("Service", s)
		cond.unsupported(false, field, "This control plane makes no waypoints, so %s has no part in calls of this service: "+
			"they go to its pods, and what policies with targetRefs say of it is not enforced.", name)
		c.report(s, cond)
	}
}

// waypointOf is the waypoint that a service asks for, itself or with its namespace, and where it says so; "" if it asks for none.
func (c *compiler) waypointOf(s *corev1.Service) (name, field string) {
	labels, where := s.Labels, "metadata.labels"
	if labels[mesh.LabelUseWaypoint] == "" {
		ns := c.objects.Namespaces[s.Namespace]
		if ns == nil {
			return "", ""
		}
		labels, where = ns.Labels, "the namespace's labels"
	}
	name = labels[mesh.LabelUseWaypoint]
	if name == "" || name == mesh.ModeNone {
		return "", ""
	}
	return cmp.Or(labels[labelUseWaypointNamespace], s.Namespace) + "/" + name, fmt.Sprintf("%s[%s]", where, mesh.LabelUseWaypoint)
}
