// SPDX-License-Identifier: Apache-2.0

package ztunnel

import "runtime/debug"

const (
	// bulk is how many objects at once are a bulk load: decoding them leaves several times their size behind.
	bulk = 5000
	// bulkGCPercent makes the collector keep up with that, so that neither the process's peak nor the gaps that garbage
	// leaves between what stays are much larger than what stays. It costs a bulk load about as much time again.
	bulkGCPercent = 10
)

// frugally loads n objects that the control plane sent: all of them lie in memory meanwhile.
func frugally(n int, load func()) {
	if n >= bulk {
		before := debug.SetGCPercent(bulkGCPercent)
		defer debug.SetGCPercent(before)
	}
	load()
}
