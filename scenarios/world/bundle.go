// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// CollectIfFailed leaves a bundle of the suite's lab if the current scenario failed: call it after each.
func CollectIfFailed(ctx context.Context) {
	if shared.Lab != nil {
		if err := collectIfFailed(ctx, &shared); err != nil {
			ginkgo.GinkgoWriter.Println("no more packets for timelines:", err)
		}
	}
}

// collectIfFailed leaves the lab recording.
func collectIfFailed(ctx context.Context, w *World) error {
	spec := ginkgo.CurrentSpecReport()
	if !spec.Failed() {
		return w.trim(ctx)
	}
	end := time.Now() // what the bundle's questions cause is no part of the story
	if at := spec.Failure.TimelineLocation.Time; !at.IsZero() {
		end = at
	}
	dir := filepath.Join(failures(), slug(spec.FullText()), w.Spec.Name)
	facts := map[string]string{"seed": strconv.FormatInt(ginkgo.GinkgoRandomSeed(), 10), "scenario": spec.FullText(), "revision": settings.Revision, "driver": w.driver}
	if _, err := w.Bundle(ctx, lab.DirSink(dir), lab.BundleOptions{Each: Budget.Evidence, Facts: facts}); err != nil {
		ginkgo.GinkgoWriter.Println("the bundle lacks something:", err)
	}
	if err := w.tell(ctx, lab.DirSink(dir), spec.StartTime, end); err != nil {
		ginkgo.GinkgoWriter.Println("the timeline lacks something:", err)
	}
	ginkgo.AddReportEntry(bundleEntry, filepath.Dir(dir), ginkgo.ReportEntryVisibilityNever)
	fmt.Fprintf(ginkgo.GinkgoWriter, "\nevidence of the failure: %s\n", filepath.Dir(dir))
	return w.recordWires(ctx)
}

func slug(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() > 100 {
			break
		}
	}
	return strings.Trim(b.String(), "-")
}
