// SPDX-License-Identifier: Apache-2.0

//go:build race

package hbone

// scale divides the work of tests that the race detector slows down more than tenfold.
const scale = 16
