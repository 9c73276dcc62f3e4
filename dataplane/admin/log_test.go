// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestDurationText(t *testing.T) {
	var b strings.Builder
	log := slog.New(slog.NewJSONHandler(&b, &slog.HandlerOptions{ReplaceAttr: DurationText}))
	log.Info("m", "took", 1500*time.Millisecond, slog.Group("g", "ttl", 24*time.Hour), "n", 3)
	if want := `"took":"1.5s","g":{"ttl":"24h0m0s"},"n":3`; !strings.Contains(b.String(), want) {
		t.Errorf("no %s in %s", want, b.String())
	}
}
