// SPDX-License-Identifier: Apache-2.0

// Package zdsapi is the wire form of the conversation between CNI agent and node proxy, generated from zds.proto under the
// names that Istio registered. It is used by package zds; nobody else should need it.
// Source: Istio, zds.proto.
package zdsapi

//go:generate sh -c "protoc -I ../../.. --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=../../.. --go_opt=paths=source_relative dataplane/zds/zdsapi/zds.proto"
