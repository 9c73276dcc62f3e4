// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/topologies/workload"
)

// callFlags is what `workload call` says of its URLs and flags.
func callFlags() string {
	var b strings.Builder
	_, _, _ = workload.ParseCall([]string{"--help"}, &b)
	_, text, _ := strings.Cut(b.String(), "\n\n") // without its own usage line
	return text
}

// callOptions reads the flags of a call here already: what is wrong with them is said once, and without a lab.
func (a *app) callOptions(command, url string, flags []string) (workload.Options, error) {
	o, _, err := workload.ParseCall(append(slices.Clone(flags), url), io.Discard)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(a.stdout, callFlags())
		return o, err
	}
	if err != nil {
		return o, usageError{err: fmt.Errorf("%s: %w", command, err), command: command}
	}
	return o, nil
}

// noHelp: who asked for help, got it.
func noHelp(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	return err
}

// call makes calls. Calls that failed are a verdict: exit 1.
func (a *app) call(ctx context.Context, pod, url string, flags []string) error {
	if _, err := a.callOptions("call", url, flags); err != nil {
		return noHelp(err)
	}
	argv := append(append([]string{"workload", "call"}, flags...), url)
	if a.output == "json" {
		return a.exec(ctx, pod, argv)
	}
	product := a.stdout
	var document bytes.Buffer
	a.stdout = &document
	err := a.exec(ctx, pod, argv)
	a.stdout = product
	var res workload.Result
	if decodeErr := json.Unmarshal(document.Bytes(), &res); decodeErr != nil {
		_, _ = a.stdout.Write(document.Bytes()) // nothing, mostly
		return err
	}
	for _, c := range res.Calls {
		fmt.Fprintln(a.stdout, callLine(c))
	}
	if n := res.OK + res.Failed; n > 1 {
		fmt.Fprintf(a.stdout, "%d calls, %d failed, median %s, slowest %s\n", n, res.Failed, ms(res.LatencyP50), ms(res.LatencyMax))
	}
	return err
}

// callLine is a call for people.
func callLine(c workload.Call) string {
	line := "ok"
	switch {
	case !c.OK:
		line = "failed: " + c.Error
	case c.Status != 0:
		line = fmt.Sprintf("%d %s", c.Status, http.StatusText(c.Status))
	}
	line += "  " + ms(c.Latency)
	if c.LocalAddr.IsValid() {
		line += fmt.Sprintf("  %s → %s", c.LocalAddr, c.RemoteAddr)
	}
	if s := c.Seen; s != nil {
		by := s.Workload
		if s.Namespace != "" {
			by = s.Namespace + "/" + by
		}
		line += fmt.Sprintf("  answered by %s at %s, which saw %s", by, s.LocalAddr, s.RemoteAddr)
	}
	return line
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }

// trace makes a call and draws its hops. A call that failed is a verdict: exit 1.
func (a *app) trace(ctx context.Context, pod, url string, flags []string) error {
	o, err := a.callOptions("trace", url, flags)
	if err != nil {
		return noHelp(err)
	}
	if o.Count > 1 || o.Concurrency > 1 || o.Duration > 0 {
		return usageError{err: errors.New("trace: it follows one call: leave out --count, --concurrency and --duration"), command: "trace"}
	}
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	ref, err := findPod(ctx, l, pod)
	if err != nil {
		return err
	}
	t, err := l.Trace(ctx, ref, url, o)
	if err != nil {
		return err
	}
	var drawErr error
	if err := a.print(t, func() { drawErr = t.Draw(a.stdout) }); err != nil || drawErr != nil {
		return errors.Join(err, drawErr)
	}
	if !t.Call.OK {
		return exitError(1)
	}
	return nil
}
