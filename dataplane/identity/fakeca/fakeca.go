// SPDX-License-Identifier: Apache-2.0

// Package fakeca holds the one test root that every process started with FAKE_CA=true signs with. Its key is public: it
// is for labs and tests by hand. Signing is package identity's work.
// Source: our own; root.pem and key.pem are a pair made once (ECDSA P-256), not to be renewed.
package fakeca

import _ "embed"

// RootPEM is the root certificate.
//
//go:embed root.pem
var RootPEM []byte

// KeyPEM is the root's key, PKCS #8.
//
//go:embed key.pem
var KeyPEM []byte
