// SPDX-License-Identifier: Apache-2.0

//go:build !race

package hbone

const scale = 1
