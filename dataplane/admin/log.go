// SPDX-License-Identifier: Apache-2.0

package admin

import "log/slog"

// DurationText is a slog.HandlerOptions.ReplaceAttr that makes durations text with a unit, "1.5s": a JSON handler would
// write nanoseconds.
func DurationText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}
