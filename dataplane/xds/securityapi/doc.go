// SPDX-License-Identifier: Apache-2.0

// Package securityapi is the wire form of L4 authorization policies, generated from authorization.proto under the names
// that Istio registered. It is used by package xds, which turns it into mesh nouns; nobody else should need it.
// Source: Istio, authorization.proto.
package securityapi

//go:generate sh -c "protoc -I ../../.. --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=../../.. --go_opt=paths=source_relative dataplane/xds/securityapi/authorization.proto"
