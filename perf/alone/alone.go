// SPDX-License-Identifier: Apache-2.0

package alone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/zds"
	"github.com/ambientlab/ambientlab/perf/pod"
)

// Options say what the ztunnel is given.
type Options struct {
	Ztunnel   string // its binary
	Workloads int    // that it is told of, besides its own pods
	Pods      int    // enrolled on its node, each with a service account of its own
	XDS       bool   // by a control plane; otherwise by LOCAL_XDS_PATH
	Settle    time.Duration
}

// Result is what a ztunnel holds, Settle after it said that it is ready.
type Result struct {
	RSSBytes, PeakBytes int64
}

// readyTimeout is generous: a hundred thousand workloads are written, read and compiled first.
const readyTimeout = 2 * time.Minute

// Command is a process that calls Serve in namespaces of its own: exe must do that for the arguments it is given. It needs
// the right to make namespaces, root's or an ordinary user's in a user namespace.
func Command(ctx context.Context, exe string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, exe, args...)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Serve starts a ztunnel as o says, waits, looks and ends it; it writes a Result to out. The process must be in a network
// namespace of its own.
func Serve(ctx context.Context, o Options, out io.Writer) error {
	dir, err := os.MkdirTemp("", "alone-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := loopbackUp(); err != nil {
		return err
	}
	pods, err := makePods(o.Pods)
	defer func() {
		for _, p := range pods {
			_ = p.NS.Close()
		}
	}()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	agent := zds.NewServer(zds.ServerConfig{Path: filepath.Join(dir, "z.sock"), Snapshot: func() []zds.Entry { return pods }, Log: slog.New(slog.DiscardHandler)})
	g.Go(func() error { return agent.Run(ctx) })
	var res Result
	g.Go(func() error {
		defer stop()
		env, err := configure(ctx, g, o, dir)
		if err != nil {
			return err
		}
		res, err = run(ctx, o, dir, env)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(res)
}

// makePods makes namespaces for pods that do nothing.
func makePods(n int) (pods []zds.Entry, err error) {
	for i := range n {
		ns, err := netns.New()
		if err != nil {
			return pods, err
		}
		name := podName(i)
		pods = append(pods, zds.Entry{NS: ns, Workload: zds.Workload{UID: "uid-" + name, Name: name, Namespace: "node", ServiceAccount: name}})
	}
	return pods, nil
}

func podName(i int) string { return "pod-" + strconv.Itoa(i) }

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up the loopback: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring up the loopback: %w", err)
	}
	return nil
}

// run starts the ztunnel and looks at it once it has been ready for a while.
func run(ctx context.Context, o Options, dir string, env []string) (res Result, err error) {
	var log strings.Builder
	cmd := exec.CommandContext(ctx, o.Ztunnel)
	cmd.Dir = dir
	cmd.Env = append(slices.Clone(env), "FAKE_CA=true", "INPOD_UDS="+filepath.Join(dir, "z.sock"), "NODE_NAME=node", "LOG_LEVEL=warn")
	cmd.Stdout, cmd.Stderr = io.Discard, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return res, fmt.Errorf("start ztunnel: %w", err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process, which is waited for below
		defer close(ended)
		_ = cmd.Wait()
	}()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, strings.TrimSpace(log.String()))
		}
	}()
	if err := awaitReady(ctx, ended); err != nil {
		return res, err
	}
	select {
	case <-time.After(o.Settle):
	case <-ended:
		return res, errors.New("ztunnel ended")
	case <-ctx.Done():
		return res, context.Cause(ctx)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	if res.RSSBytes, err = pod.Memory(pid, "VmRSS"); err != nil {
		return res, err
	}
	res.PeakBytes, err = pod.Memory(pid, "VmHWM")
	return res, err
}

func awaitReady(ctx context.Context, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ready(ctx, client) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ended:
			return errors.New("ztunnel ended before it was ready")
		case <-ctx.Done():
			return fmt.Errorf("ztunnel is not ready: %w", context.Cause(ctx))
		}
	}
}

func ready(ctx context.Context, client *http.Client) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:15021/healthz/ready", nil)
	if err != nil {
		return false
	}
	rsp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer rsp.Body.Close()
	return rsp.StatusCode == http.StatusOK
}
