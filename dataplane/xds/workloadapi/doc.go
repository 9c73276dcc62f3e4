// SPDX-License-Identifier: Apache-2.0

// Package workloadapi is the wire form of workloads and services, generated from workload.proto under the names that
// Istio registered. It is used by package xds, which turns it into mesh nouns; nobody else should need it.
// Source: Istio, workload.proto.
package workloadapi

//go:generate sh -c "protoc -I ../../.. --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=../../.. --go_opt=paths=source_relative dataplane/xds/workloadapi/workload.proto"
