// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

// Lab is a lab that is up: its driver, and the helpers that every caller shares. Its methods may be called concurrently.
type Lab struct {
	Driver
	Spec *topologies.Spec
	Dir  string // the lab's directory on this host; "" if the driver has none
}

// ExecError says that a command in a pod could not do its work.
type ExecError struct {
	Pod    PodRef
	Argv   []string
	Exit   int
	Stderr string
}

func (e *ExecError) Error() string {
	return fmt.Sprintf("exec in %s: %s: exit %d: %s", e.Pod, strings.Join(e.Argv, " "), e.Exit, e.Stderr)
}

// StartError says that a pod's kernel did not start a command: ENOENT, EACCES, ENOEXEC and so on.
type StartError struct {
	Err   error
	Errno syscall.Errno
}

func (e *StartError) Error() string { return e.Err.Error() }

// Unwrap makes errors.Is work with fs.ErrNotExist and fs.ErrPermission too.
func (e *StartError) Unwrap() []error { return []error{e.Err, e.Errno} }

// Call makes the calls that o describes from a pod and returns what came of them. Calls that failed are no error:
// the result says how. An error means that no result is to be had.
func (l *Lab) Call(ctx context.Context, from PodRef, url string, o workload.Options) (workload.Result, error) {
	var res workload.Result
	out, err := l.Output(ctx, from, workload.Command(url, o)...)
	if failed := (*ExecError)(nil); errors.As(err, &failed) && failed.Exit == 1 && len(out) > 0 {
		err = nil // exit 1 with a document is a verdict
	}
	if err != nil {
		return res, err
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return res, fmt.Errorf("call from %s: decode result: %w", from, err)
	}
	return res, nil
}

// Resolve asks a name server from a pod. A question without an answer is no error: the result says so.
func (l *Lab) Resolve(ctx context.Context, from PodRef, name string, o workload.ResolveOptions) (workload.Resolution, error) {
	var r workload.Resolution
	out, err := l.Output(ctx, from, workload.ResolveCommand(name, o)...)
	if failed := (*ExecError)(nil); errors.As(err, &failed) && failed.Exit == 1 && len(out) > 0 {
		err = nil
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("resolve from %s: decode result: %w", from, err)
	}
	return r, nil
}

// Output runs argv in a pod and returns its standard output. An exit code other than 0 is an *ExecError, with what was
// printed until then.
func (l *Lab) Output(ctx context.Context, pod PodRef, argv ...string) ([]byte, error) {
	var out, errOut bytes.Buffer
	exit, err := l.Exec(ctx, pod, argv, Stdio{Out: &out, Err: &errOut})
	if err != nil {
		return out.Bytes(), fmt.Errorf("exec in %s: %w", pod, err)
	}
	if exit != 0 {
		return out.Bytes(), &ExecError{Pod: pod, Argv: argv, Exit: exit, Stderr: strings.TrimSpace(errOut.String())}
	}
	return out.Bytes(), nil
}

// Find completes a reference that may lack its namespace and returns the pod. A name that is in several namespaces is
// an error that lists them.
func (l *Lab) Find(ctx context.Context, ref PodRef) (PodInfo, error) {
	pods, err := l.Pods(ctx)
	if err != nil {
		return PodInfo{}, fmt.Errorf("list pods: %w", err)
	}
	var found []PodInfo
	var names []string
	for _, p := range pods {
		if p.Name == ref.Name && (ref.Namespace == "" || ref.Namespace == p.Namespace) {
			found = append(found, p)
			names = append(names, p.String())
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return PodInfo{}, fmt.Errorf("no pod %q; there are: %s", strings.TrimPrefix(ref.String(), "/"), podNames(pods))
	default:
		return PodInfo{}, fmt.Errorf("pod %q is ambiguous: %s", ref.Name, strings.Join(names, ", "))
	}
}

// AwaitPod waits until a pod is as wanted, and returns it. what completes "pod x is not": "ready", "enrolled".
func (l *Lab) AwaitPod(ctx context.Context, ref PodRef, what string, ok func(PodInfo) bool) (PodInfo, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		p, err := l.Find(ctx, ref)
		if err == nil && ok(p) {
			return p, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err == nil && p.Problem != "" {
				err = errors.New(p.Problem)
			}
			if err == nil {
				err = ctx.Err()
			}
			return p, fmt.Errorf("pod %s is not %s: %w", ref, what, err)
		}
	}
}

func podNames(pods []PodInfo) string {
	names := make([]string, len(pods))
	for i, p := range pods {
		names[i] = p.String()
	}
	return strings.Join(names, ", ")
}
