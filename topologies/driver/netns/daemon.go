// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/channel"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Daemon implements lab.Driver.
func (d *Driver) Daemon(node, name string) lab.Daemon { return &daemon{d: d, node: node, name: name} }

type daemon struct {
	d          *Driver
	node, name string
}

func (m *daemon) do(ctx context.Context, a order.Action, sig int, env ...string) error {
	dir, err := m.d.standing()
	if err != nil {
		return err
	}
	r := m.request(a, sig)
	r.Daemon.Env = env
	_, err = do(ctx, dir, r, nil)
	return err
}

func (m *daemon) request(a order.Action, sig int) order.Request {
	return order.Request{Daemon: &order.Daemon{Node: m.node, Name: m.name, Action: a, Signal: sig}}
}

func (m *daemon) Signal(ctx context.Context, sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %s: %v is no signal of this system", m.name, sig)
	}
	return m.do(ctx, order.ActionSignal, int(n))
}

func (m *daemon) Stop(ctx context.Context) error  { return m.do(ctx, order.ActionStop, 0) }
func (m *daemon) Ready(ctx context.Context) error { return m.do(ctx, order.ActionReady, 0) }

func (m *daemon) Start(ctx context.Context, env ...string) error {
	return m.do(ctx, order.ActionStart, 0, env...)
}

func (m *daemon) Restart(ctx context.Context, env ...string) error {
	if err := m.Stop(ctx); err != nil {
		return err
	}
	return m.Start(ctx, env...)
}

func (m *daemon) Replace(ctx context.Context, env ...string) error {
	return m.do(ctx, order.ActionReplace, 0, env...)
}

// Status implements lab.Daemon. The process id is this process's view of a descriptor that the holder hands over.
func (m *daemon) Status(ctx context.Context) (lab.Status, error) {
	dir, err := m.d.standing()
	if err != nil {
		return lab.Status{}, err
	}
	e, err := ask(ctx, dir, m.request(order.ActionStatus, 0))
	if err != nil {
		return lab.Status{}, err
	}
	defer e.close()
	reply, files, err := e.next(ctx)
	if err != nil {
		return lab.Status{}, err
	}
	defer channel.CloseAll(files)
	if reply.Status == nil {
		return lab.Status{}, errors.New("the lab's holder gave no status")
	}
	if len(files) == 1 {
		reply.Status.PID = pidOf(files[0])
	}
	return *reply.Status, nil
}

// pidOf reads the process id behind a pidfd, 0 if it has ended (pidfd_open(2), "fdinfo").
func pidOf(pidfd *os.File) int {
	f, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil || pid < 0 {
				return 0
			}
			return pid
		}
	}
	return 0
}

// Logs implements lab.Daemon: the whole log, for its lines have times of their own.
func (m *daemon) Logs(_ context.Context, _ time.Time) (io.ReadCloser, error) {
	dir, err := m.d.standing()
	if err != nil {
		return nil, err
	}
	name := m.name
	if m.node != "" {
		name += "." + m.node
	}
	f, err := os.Open(dir.Log(name))
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	return f, nil
}

// LogsSoFar implements lab.Daemon.
func (m *daemon) LogsSoFar(ctx context.Context, since time.Time) (io.ReadCloser, error) {
	return m.Logs(ctx, since)
}

// Admin implements lab.Daemon. Connections are made for one request each: the daemon may be another one by the next.
func (m *daemon) Admin() http.RoundTripper {
	return &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", m.name, err)
		}
		return m.dial(ctx, uint16(n))
	}}
}

func (m *daemon) dial(ctx context.Context, port uint16) (net.Conn, error) {
	dir, err := m.d.standing()
	if err != nil {
		return nil, err
	}
	e, err := ask(ctx, dir, order.Request{Dial: &order.Dial{Node: m.node, Name: m.name, Port: port}})
	if err != nil {
		return nil, err
	}
	defer e.close()
	_, files, err := e.next(ctx)
	if err != nil {
		return nil, err
	}
	defer channel.CloseAll(files)
	if len(files) != 1 {
		return nil, fmt.Errorf("dial %s: the holder handed over %d descriptors", m.name, len(files))
	}
	return net.FileConn(files[0])
}
