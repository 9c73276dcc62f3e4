// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/perf/pod"
	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/driver/netns"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

//go:embed lab.yaml
var labTopology []byte

// Where the server listens, and the relays in front of it. A run of ports, for connections that were closed keep theirs
// for a minute.
const ports = 16

var (
	serverPorts   = pod.Ports{First: 7000, Count: ports}
	plainInbound  = pod.Ports{First: 7100, Count: ports}
	plainOutbound = pod.Ports{First: 7200, Count: ports}
	tlsInbound    = pod.Ports{First: 7300, Count: ports}
	tlsOutbound   = pod.Ports{First: 7400, Count: ports}
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// station is what a mode needs: who makes the load and who serves it, and what stands between.
type station struct {
	client  *agent
	ends    []daemonProcess // client and server
	proxies []daemonProcess
	targets []string
}

// daemonProcess is a process by its id in this PID namespace.
type daemonProcess int

func (p daemonProcess) cpu() (time.Duration, error) { return pod.CPUTime(int(p)) }

func (p daemonProcess) memory(field string) (int64, error) {
	return pod.Memory(strconv.Itoa(int(p)), field)
}

// site is the lab with everything that runs in it for a measurement.
type site struct {
	lab      *lab.Lab
	agents   []*agent
	stations map[Mode]*station
	ztunnels []daemonProcess // of the client's node, and of the server's
	link     pod.Link
}

var (
	meshClient  = lab.PodRef{Namespace: "mesh", Name: "client"}
	meshServer  = lab.PodRef{Namespace: "mesh", Name: "server"}
	plainClient = lab.PodRef{Namespace: "plain", Name: "client"}
	plainServer = lab.PodRef{Namespace: "plain", Name: "server"}
)

// open brings the lab up and starts servers, relays and load generators in it.
func open(ctx context.Context, o Options) (*site, error) {
	spec, err := topologies.Load(bytes.NewReader(labTopology))
	if err != nil {
		return nil, fmt.Errorf("read the lab's topology: %w", err)
	}
	d := netns.New(netns.Options{})
	if err := d.Up(ctx, spec, lab.UpOptions{Bin: o.Bin, Unique: true, DaemonEnv: map[string][]string{lab.DaemonZtunnel: o.Env}}); err != nil {
		return nil, err
	}
	s := &site{lab: &lab.Lab{Driver: d, Spec: spec, Dir: d.Dir()}, stations: map[Mode]*station{}}
	if err := s.populate(ctx); err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	return s, nil
}

// close ends every process and takes the lab down, also if ctx has ended.
func (s *site) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	for _, a := range s.agents {
		_ = a.close() // the lab's end would end it too
	}
	return s.lab.Down(ctx)
}

func (s *site) populate(ctx context.Context) error {
	addrs := map[lab.PodRef]netip.Addr{}
	for _, ref := range []lab.PodRef{meshServer, plainServer} {
		info, err := s.lab.Find(ctx, ref)
		if err != nil {
			return err
		}
		if len(info.IPs) == 0 {
			return fmt.Errorf("pod %s has no address", ref)
		}
		addrs[ref] = info.IPs[0]
	}
	for _, node := range []string{"node1", "node2"} {
		status, err := s.lab.Daemon(node, lab.DaemonZtunnel).Status(ctx)
		if err != nil {
			return err
		}
		if status.PID == 0 {
			return fmt.Errorf("ztunnel on %s does not run", node)
		}
		s.ztunnels = append(s.ztunnels, daemonProcess(status.PID))
	}
	if err := s.populatePlain(ctx, addrs[plainServer]); err != nil {
		return err
	}
	return s.populateMesh(ctx, addrs[meshServer])
}

func (s *site) populatePlain(ctx context.Context, server netip.Addr) error {
	serve, err := s.start(ctx, plainServer, "serve", serverPorts, "", nil)
	if err != nil {
		return err
	}
	load, err := s.start(ctx, plainClient, "load", pod.Ports{}, "", nil)
	if err != nil {
		return err
	}
	s.link = load.link
	ends := []daemonProcess{load.process, serve.process}
	s.stations[Direct] = &station{client: load, ends: ends, targets: serverPorts.Targets(server)}
	for _, r := range []struct {
		mode      Mode
		in, out   pod.Ports
		inK, outK string
	}{{Relays, plainInbound, plainOutbound, pod.RelayPlain, pod.RelayPlain}, {TLS, tlsInbound, tlsOutbound, pod.RelayTLSServer, pod.RelayTLSClient}} {
		in, err := s.start(ctx, plainServer, "relay", r.in, r.inK, serverPorts.Targets(loopback))
		if err != nil {
			return err
		}
		out, err := s.start(ctx, plainClient, "relay", r.out, r.outK, r.in.Targets(server))
		if err != nil {
			return err
		}
		s.stations[r.mode] = &station{client: load, ends: ends, proxies: []daemonProcess{out.process, in.process}, targets: r.out.Targets(loopback)}
	}
	return nil
}

func (s *site) populateMesh(ctx context.Context, server netip.Addr) error {
	serve, err := s.start(ctx, meshServer, "serve", serverPorts, "", nil)
	if err != nil {
		return err
	}
	load, err := s.start(ctx, meshClient, "load", pod.Ports{}, "", nil)
	if err != nil {
		return err
	}
	s.stations[Ztunnel] = &station{client: load, ends: []daemonProcess{load.process, serve.process}, proxies: s.ztunnels, targets: serverPorts.Targets(server)}
	return nil
}

func (s *site) start(ctx context.Context, at lab.PodRef, role string, p pod.Ports, kind string, targets []string) (*agent, error) {
	args := []string{role, "--procs", strconv.Itoa(procs())}
	if role != "load" {
		args = append(args, "--port", strconv.Itoa(p.First), "--ports", strconv.Itoa(p.Count))
	}
	if role == "relay" {
		args = append(args, "--kind", kind, "--targets", strings.Join(targets, ","))
	}
	a, err := startAgent(ctx, s.lab, at, args...)
	if err != nil {
		return nil, err
	}
	s.agents = append(s.agents, a)
	return a, nil
}

// procs is the most that a ztunnel makes GOMAXPROCS, which it lowers while fewer suffice, and what every other process of a
// measurement has all the time.
func procs() int {
	cpus := runtime.NumCPU()
	return min(max(2, (cpus+3)/4), runtime.GOMAXPROCS(0))
}

// measure makes one timed load, between two looks at the clocks.
func (st *station) measure(load pod.Load) (sample, error) {
	load.Targets = st.targets
	if _, err := st.client.ask(pod.Request{Prepare: &load}); err != nil {
		return sample{}, err
	}
	proxyBefore, err := sum(st.proxies)
	if err != nil {
		return sample{}, err
	}
	endsBefore, err := sum(st.ends)
	if err != nil {
		return sample{}, err
	}
	reply, err := st.client.ask(pod.Request{Run: true})
	if err != nil {
		return sample{}, err
	}
	proxyAfter, err := sum(st.proxies)
	if err != nil {
		return sample{}, err
	}
	endsAfter, err := sum(st.ends)
	if err != nil {
		return sample{}, err
	}
	if _, err := st.client.ask(pod.Request{Finish: true}); err != nil {
		return sample{}, err
	}
	if reply.Result == nil {
		return sample{}, errors.New("the load gave no result")
	}
	if r := reply.Result; r.Errors > 0 {
		return sample{}, fmt.Errorf("%d of %d failed: %s", r.Errors, r.Count, r.FirstError)
	}
	proxy := proxyAfter - proxyBefore
	return sample{result: *reply.Result, proxy: proxy, total: proxy + endsAfter - endsBefore}, nil
}

func sum(list []daemonProcess) (total time.Duration, err error) {
	for _, p := range list {
		d, err := p.cpu()
		if err != nil {
			return 0, err
		}
		total += d
	}
	return total, nil
}
