// SPDX-License-Identifier: Apache-2.0

// Package faults holds the scenarios about what breaks from outside: networks that part, peers that lie, things that run out.
package faults
