// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"io"
	"time"
)

// Evidence is a driver that knows more of a lab than every driver must, for bundles.
type Evidence interface {
	// Collect adds files, with what each is about. What cannot be had is in the error, and does not keep the rest from being added.
	Collect(ctx context.Context, add func(name, about string, content []byte)) error
}

// LogCopier is a driver whose labs have no directory of logs on this host.
type LogCopier interface {
	// LogSources lists the pods of the lab and its daemons, of which there are logs.
	LogSources(ctx context.Context) ([]LogSource, error)

	// CopyLog writes the lines of a pod's log to w, one with each Write, with its time in front as RFC 3339 has it.
	CopyLog(ctx context.Context, pod PodRef, o LogOptions, w io.Writer) error
}

// LogSource is a pod that has a log.
type LogSource struct {
	Name string // a daemon's, "ztunnel.node1", or the pod's, "shop/web"
	Pod  PodRef
}

// LogOptions say which lines are wanted. The zero value is all that there are now.
type LogOptions struct {
	Since  time.Time // older ones are left out
	Follow bool      // go on, over restarts, until ctx ends or the pod is gone, neither of which is an error
}
