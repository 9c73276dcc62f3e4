// SPDX-License-Identifier: Apache-2.0

package world

import "github.com/ambientlab/ambientlab/topologies/lab"

// Sample is one series at one moment.
type Sample = lab.Sample

// Samples are a scrape, or the difference of two.
type Samples = lab.Samples

// short is a series with the labels that tell connections apart.
func short(s Sample) Sample {
	out := Sample{Name: s.Name, Labels: map[string]string{}, Value: s.Value}
	for _, l := range []string{"reporter", "source_workload", "destination_workload", "destination_service_name", "connection_security_policy", "response_flags"} {
		out.Labels[l] = s.Labels[l]
	}
	return out
}
